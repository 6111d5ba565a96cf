"""The nested algorithm: solve the inner problem, solve the adjoint, step the hyperparameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax

from bilevel import _compiled, _tree
from bilevel._tree import PyTree
from bilevel.hypergrad import Estimator, Hypergradient, Verdict, misfits
from bilevel.inner import InnerSolver
from bilevel.outer._report import Point, Report
from bilevel.problem import At, Problem

P = ParamSpec("P")
R = TypeVar("R")


def _in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Matrix products in full float32 unless the user set `jax_default_matmul_precision`.

    GPUs and TPUs round the factors to 10 or 7 bits otherwise, and no solve in float32 then comes below a residual of 1e-5.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen: Any = jax.config
        with jax.default_matmul_precision(chosen.jax_default_matmul_precision or "highest"):
            return function(*args, **kwargs)

    return wrapped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NestedState:
    """The state of `Nested` between two outer steps: a pytree of arrays.

    Attributes:
      hparams: hyperparameters.
      params: the last inner solution, start of the next inner solve.
      carry: the estimator's carry; for `hypergrad.Implicit` the last adjoint, start of the next adjoint solve.
      optimizer: the optimizer's state.
      step: outer steps done, int32.
      key: data of the random key from which the key of each step is derived.
      prepared: the arrays that the inner solver computed once, from the data alone.

    Example:
      >>> import bilevel as bl
      >>> bl.outer.NestedState(hparams=1.0, params=2.0, carry=0.0, optimizer=(), step=3, key=None).step
      3
    """

    hparams: PyTree
    params: PyTree
    carry: PyTree
    optimizer: PyTree
    step: jax.Array
    key: jax.Array
    prepared: PyTree = None


@dataclasses.dataclass(frozen=True)
class Nested:
    """The nested algorithm: one hypergradient and one optimizer update per step, with warm-started params and adjoint.

    A hypergradient that is not finite is never applied: hparams, params and carry then stay as they were. Matrix products are
    in full float32 on GPUs too, unless `jax_default_matmul_precision` is set.

    Args:
      problem: with an outer_loss.
      inner: a solver of `bilevel.inner`.
      hypergrad: an estimator of `bilevel.hypergrad`.
      optimizer: any optax transformation; one that takes `value`, `grad` and `value_fn` is given them.

    Example:
      >>> import jax, jax.numpy as jnp, optax, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, data: jnp.sum((x - h * data) ** 2), lambda x, h, data: jnp.sum((x - 6.0) ** 2))
      >>> algorithm = bl.outer.Nested(problem, bl.inner.LBFGS(), bl.hypergrad.Implicit(), optax.sgd(0.1))
      >>> data = jnp.array([2.0, 2.0])
      >>> state, step = algorithm.init(jnp.array(0.0), jnp.zeros(2), data), jax.jit(algorithm.step)
      >>> for _ in range(20):
      ...     state, report = step(state, data)
      >>> print(state.hparams.round(), state.step)
      3.0 20
    """

    problem: Problem
    inner: InnerSolver
    hypergrad: Estimator
    optimizer: optax.GradientTransformation

    @_in_full_precision
    def init(self, hparams: PyTree, params: PyTree, data: PyTree, key: jax.Array | None = None) -> NestedState:
        """Check that the parts fit together, then make the first state.

        Args:
          hparams, params: start values.
          data: passed to the functions of the problem.
          key: a JAX random key, for estimators and inner solvers that draw; None is `jax.random.key(0)`.

        Raises:
          ValueError, TypeError: parts that do not fit, statements of the problem that contradict each other, start values
            that are not finite or have no floating-point leaf.
        """
        hparams, params = _tree.as_arrays(hparams), _tree.as_arrays(params)
        check(self.problem, self.inner, self.hypergrad, hparams, params, data)
        key = jax.random.key(0) if key is None else key
        return _compiled.compiled(_init, self)(hparams, params, data, key)

    @_in_full_precision
    def step(self, state: NestedState, data: PyTree) -> tuple[NestedState, Report]:
        """One outer step. Pure; wrap it in `jax.jit`.

        Returns:
          The next state, and the `Report` of the point that the step started from.
        """
        moving, fixed = _tree.split(state.hparams)

        def estimate(moving: PyTree) -> Hypergradient:
            return self._estimate(self.hypergrad, state, _tree.merge(moving, fixed), data)

        @jax.custom_jvp
        def value_fn(moving: PyTree) -> jax.Array:
            return estimate(moving).outer_loss

        @value_fn.defjvp
        def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[jax.Array, jax.Array]:
            found = estimate(*primals)
            return found.outer_loss, _tree.vdot(found.grad, tangents[0])

        found = estimate(moving)
        update = optax.with_extra_args_support(self.optimizer).update
        updates, optimizer = update(
            found.grad, state.optimizer, moving, value=found.outer_loss, grad=found.grad, value_fn=value_fn
        )
        updated = _tree.cast_like(optax.apply_updates(moving, updates), moving)
        usable = _tree.all_finite(found.grad) & jnp.isfinite(found.outer_loss) & _tree.all_finite(updated)
        following = dataclasses.replace(
            state,
            hparams=_tree.merge(_tree.where(usable, updated, moving), fixed),
            params=_tree.where(_tree.all_finite(found.params), found.params, state.params),
            carry=_tree.where(_tree.all_finite(found.carry), found.carry, state.carry),
            optimizer=_tree.where(usable, _tree.cast_like(optimizer, state.optimizer), state.optimizer),
            step=state.step + 1,
        )
        report = Report(
            outer_loss=found.outer_loss,
            grad_norm=_tree.norm(found.grad),
            outer_error=found.outer_error,
            solves=found.solves,
            counts=found.counts,
            verdict=found.verdict,
            update_norm=_tree.norm(updates),
        )
        return following, report

    @_in_full_precision
    def examine(self, state: NestedState, data: PyTree) -> Verdict | None:
        """The full verdict on the hypergradient of the step from this state. Pure; it solves the inner problem once more."""
        full = dataclasses.replace(self.hypergrad, verdict="full")
        return self._estimate(full, state, state.hparams, data).verdict

    def _estimate(self, hypergrad: Estimator, state: NestedState, hparams: PyTree, data: PyTree) -> Hypergradient:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        at = At(self.problem, hparams, data, state.prepared, key)
        return hypergrad.estimate(at, self.inner, state.params, state.carry, key)

    def point(self, new: NestedState, old: NestedState) -> Point:
        """The hyperparameters from which the step started, and their inner solution."""
        return Point(old.hparams, new.params)

    def hold(self, new: NestedState, old: NestedState) -> NestedState:
        """The inner solution and the carry of the new state, with the hyperparameters and the optimizer of the old one."""
        return dataclasses.replace(new, hparams=old.hparams, optimizer=old.optimizer)


@_in_full_precision
def _init(algorithm: Nested, hparams: PyTree, params: PyTree, data: PyTree, key: jax.Array) -> NestedState:
    at = At(algorithm.problem, hparams, data)
    at = at.replace(prepared=algorithm.hypergrad.prepare(at, algorithm.inner))
    moving, _ = _tree.split(hparams)
    return NestedState(
        hparams=hparams,
        params=params,
        carry=algorithm.hypergrad.init(at, params),
        optimizer=_tree.as_arrays(algorithm.optimizer.init(moving)),
        step=jnp.array(0, jnp.int32),
        key=jax.random.key_data(key),
        prepared=at.prepared,
    )


def check(
    problem: Problem, inner: InnerSolver, hypergrad: Estimator, hparams: PyTree, params: PyTree, data: PyTree
) -> None:
    """Refuse parts that do not fit together, start values that cannot be optimized, and what the estimator cannot take."""
    if problem.outer_loss is None:
        raise ValueError(
            "outer.Nested needs Problem.outer_loss, which this problem does not have: add it to the Problem"
        )
    reasons = misfits(problem, inner, hypergrad)
    if reasons:
        raise ValueError("; and ".join(reasons))
    for name, tree in (("hparams", hparams), ("params", params)):
        if not any(_tree.is_inexact(x) for x in jax.tree.leaves(tree)):
            raise TypeError(f"{name} has no floating-point leaf to optimize: got {_tree.shapes(tree)}")
        if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(tree)):
            raise TypeError(
                f"{name} must be real, got {_tree.shapes(tree)}: optimize the real and the imaginary part as two leaves"
            )
        if not bool(_tree.all_finite(tree)):
            raise ValueError(f"{name} must start finite: it holds a NaN or an infinity")
    if not all(_tree.is_inexact(x) for x in jax.tree.leaves(params)):
        raise TypeError(f"params must be floating-point arrays, got {_tree.shapes(params)}: move the rest to data")
    hypergrad.check_arrays(At(problem, hparams, data), params)
