"""The nested algorithm: solve the inner problem, solve the adjoint, step the hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import _checks, _tree
from bilevel._tree import PyTree
from bilevel.hypergrad import Estimator, Hypergradient, misfits
from bilevel.inner import InnerSolver
from bilevel.problem import Problem


def _in_full_precision(method: Callable) -> Callable:
    """Matrix products in full float32 unless the user set `jax_default_matmul_precision`.

    GPUs and TPUs round the factors to 10 or 7 bits otherwise, and no solve in float32 then comes below a residual of 1e-5.
    """

    @functools.wraps(method)
    def wrapped(*args):
        chosen: Any = jax.config
        with jax.default_matmul_precision(chosen.jax_default_matmul_precision or "highest"):
            return method(*args)

    return wrapped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NestedState:
    """What is carried from one outer step to the next, all of it arrays.

    Attributes:
      hparams: hyperparameters.
      params: the last inner solution, start of the next.
      adjoint: the last adjoint, start of the next.
      optimizer: the optimizer's state.
      step: outer steps done.
      prepared: what the inner solver computed once, from the data alone.
    """

    hparams: PyTree
    params: PyTree
    adjoint: PyTree
    optimizer: PyTree
    step: jax.Array
    prepared: PyTree = None


@dataclasses.dataclass(frozen=True)
class Nested:
    """One hypergradient and one optimizer update per step, with warm-started params and adjoint.

    A hypergradient that is not finite is never applied: hparams, params and adjoint then stay as they were. Matrix products are
    in full float32 on GPUs too, unless `jax_default_matmul_precision` is set.

    Args:
      problem: what to solve.
      inner: a solver of `bilevel.inner`.
      hypergrad: an estimator of `bilevel.hypergrad`.
      optimizer: any optax transformation; one that asks for `value`, `grad` and `value_fn` gets them.

    Example:
      >>> import jax, jax.numpy as jnp, optax, bilevel as bl
      >>> def inner_loss(params, hparams, data):
      ...     return jnp.sum((params - data) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)
      >>> def outer_loss(params, hparams, data):
      ...     return jnp.sum((params - 1.0) ** 2)
      >>> problem = bl.Problem(inner_loss, outer_loss)
      >>> inner, hypergrad = bl.inner.LBFGS(), bl.hypergrad.Implicit(linear=bl.linear.CG())
      >>> algorithm = bl.outer.Nested(problem, inner, hypergrad, optax.adam(0.1))
      >>> data = jnp.array([2.0, 3.0])
      >>> state = algorithm.init(jnp.array(0.0), jnp.zeros(2), data)
      >>> step = jax.jit(algorithm.step)
      >>> for _ in range(100):
      ...     state, metrics = step(state, data)
      >>> bool(abs(state.hparams - jnp.log(8 / 5)) < 0.01)     # x* = data/(1 + θ), optimal at θ = 8/5
      True
    """

    problem: Problem
    inner: InnerSolver
    hypergrad: Estimator
    optimizer: optax.GradientTransformation

    @_in_full_precision
    def init(self, hparams: PyTree, params: PyTree, data: PyTree) -> NestedState:
        """Check that the parts fit together, then make the first state. Raises ValueError or TypeError."""
        hparams, params = _tree.as_arrays(hparams), _tree.as_arrays(params)
        self._check(hparams, params, data)
        moving, _ = _tree.split(hparams)
        return NestedState(
            hparams=hparams,
            params=params,
            adjoint=_tree.zeros_like(params),
            optimizer=_tree.as_arrays(self.optimizer.init(moving)),
            step=jnp.array(0, jnp.int32),
            prepared=self.inner.prepare(self.problem, hparams, data),
        )

    @_in_full_precision
    def step(self, state: NestedState, data: PyTree) -> tuple[NestedState, dict[str, jax.Array]]:
        """One outer step. Pure; wrap it in `jax.jit`.

        Returns:
          The next state, and metrics of the point that the step started from: outer_loss, outer_error, grad_norm,
          inner_residual, adjoint_residual, inner_status, adjoint_status, grad_evals, hvps (see `Hypergradient`).
        """
        moving, fixed = _tree.split(state.hparams)

        def estimate(moving) -> Hypergradient:
            hparams = _tree.merge(moving, fixed)
            return self.hypergrad.estimate(
                self.problem, self.inner, state.params, state.adjoint, hparams, data, state.prepared
            )

        @jax.custom_jvp
        def value_fn(moving):
            return estimate(moving).outer_loss

        @value_fn.defjvp
        def _(primals, tangents):
            found = estimate(*primals)
            return found.outer_loss, _tree.vdot(found.grad, tangents[0])

        found = estimate(moving)
        update = optax.with_extra_args_support(self.optimizer).update
        updates, optimizer = update(
            found.grad, state.optimizer, moving, value=found.outer_loss, grad=found.grad, value_fn=value_fn
        )
        updated = _tree.cast_like(optax.apply_updates(moving, updates), moving)
        usable = _tree.all_finite(found.grad) & jnp.isfinite(found.outer_loss) & _tree.all_finite(updated)
        following = NestedState(
            hparams=_tree.merge(_tree.where(usable, updated, moving), fixed),
            params=_tree.where(_tree.all_finite(found.params), found.params, state.params),
            adjoint=_tree.where(_tree.all_finite(found.adjoint), found.adjoint, state.adjoint),
            optimizer=_tree.where(usable, _tree.cast_like(optimizer, state.optimizer), state.optimizer),
            step=state.step + 1,
            prepared=state.prepared,
        )
        return following, _metrics(found)

    def _check(self, hparams: PyTree, params: PyTree, data: PyTree) -> None:
        _checks.require_parts("outer.Nested", self.problem, "outer_loss")
        reasons = misfits(self.problem, self.inner, self.hypergrad)
        if reasons:
            raise ValueError("; and ".join(reasons))
        for name, tree in (("hparams", hparams), ("params", params)):
            if not any(_tree.is_inexact(x) for x in jax.tree.leaves(tree)):
                raise TypeError(f"{name} has no floating-point leaf to optimize: got {_tree.shapes(tree)}")
            if not bool(_tree.all_finite(tree)):
                raise ValueError(f"{name} must start finite: it holds a NaN or an infinity")
        wrong = [x for x in jax.tree.leaves(params) if not _tree.is_inexact(x)]
        if wrong:
            raise TypeError(f"params must be floating-point arrays, got {_tree.shapes(params)}: move the rest to data")
        primal = params.primal if self.problem.constrained else params
        for name, inputs in (("inner_loss", primal), ("outer_loss", params)):
            function = getattr(self.problem, name)
            value: Any = None if function is None else jax.eval_shape(function, inputs, hparams, data)
            if function is not None and getattr(value, "shape", None) != ():
                raise ValueError(f"Problem.{name} must return a scalar, got {_tree.shapes(value)}: sum or average it")


def _metrics(found: Hypergradient) -> dict[str, jax.Array]:
    return {
        "outer_loss": found.outer_loss,
        "outer_error": found.outer_error,
        "grad_norm": _tree.norm(found.grad),
        "inner_residual": found.inner.residual,
        "adjoint_residual": found.adjoint_residual,
        "inner_status": found.inner.status,
        "adjoint_status": found.adjoint_status,
        "grad_evals": found.grad_evals,
        "hvps": found.hvps,
    }
