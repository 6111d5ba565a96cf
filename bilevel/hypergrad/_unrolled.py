"""Differentiation through the inner solver's iterations."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree, optimality
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.hypergrad._base import Estimator, Hypergradient, Solve
from bilevel.hypergrad._fit import misfits
from bilevel.hypergrad._linearized import Linearized
from bilevel.hypergrad._verdict import judge, unexamined
from bilevel.inner import InnerSolver
from bilevel.problem import At, Problem

_Step = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unrolled(Estimator):
    """The derivative of a fixed number of inner steps, from a start that counts as a constant.

    This differentiates the iterate, not the exact solution: compare with `Implicit`. The kinds give the same derivative at
    different costs, with T = `steps`:

    - `plain`: reverse mode through a `lax.scan`; memory grows with T.
    - `conditional`: a scan whose body is a `lax.cond` that steps until the stopping test is met and then does nothing, as
      jaxopt's and the paper's unrolling do. It stops where a solve would, but reverse mode keeps what both branches need, so
      that memory grows with T times all that a step reads, data included.
    - `checkpointed`: reverse mode that keeps √T states and runs the steps between them again; memory grows with √T.
    - `forward`: forward mode, one tangent per hyperparameter; memory does not grow with T, time grows with the number of
      hyperparameters.

    Args:
      steps: T > 0, the number of inner iterations; for `conditional` their limit. The solver's own `max_steps` is not used, and
        its `rtol` and `atol` only by `conditional` and for the status.
      kind: see above.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: jnp.sum((x - h) ** 2), lambda x, h, d: jnp.sum(x**2))
      >>> estimator = bl.hypergrad.Unrolled(steps=30, kind="checkpointed")
      >>> print(estimator.run(problem, bl.inner.FISTA(), jnp.zeros(2), jnp.array([1.0, 2.0])).grad.round())
      [2. 4.]

    References: Griewank 1992 (checkpoints); Blondel et al. 2022, section 4.1 (conditional).
    """

    steps: int = 100
    kind: Literal["plain", "conditional", "checkpointed", "forward"] = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("hypergrad.Unrolled", steps=self.steps)
        if self.kind not in _ITERATE and self.kind != "forward":
            raise ValueError(
                f"hypergrad.Unrolled: kind must be 'plain', 'conditional', 'checkpointed' or 'forward', got {self.kind!r}"
            )

    def check(self, problem: Problem, inner: InnerSolver) -> None:
        """Require a solver whose steps can be differentiated."""
        if not inner.differentiable:
            raise ValueError(
                f"hypergrad.Unrolled differentiates through the steps of a solver, and those of inner.{type(inner).__name__} are "
                "a black box: use hypergrad.Implicit"
            )

    def estimate(self, at: At, inner: InnerSolver, params: PyTree, carry: PyTree, key: jax.Array) -> Hypergradient:
        """Run the steps and differentiate the outer loss after them."""
        del key
        moving, fixed = _tree.split(at.hparams)
        inner = inner.unrollable()
        at = inner.prepared(at)
        iterate = _ITERATE.get(self.kind, _plain)

        def run(moving: PyTree) -> tuple[jax.Array, Any]:
            moved = at.replace(hparams=_tree.merge(moving, fixed))
            state = inner.init(moved, params)
            state = iterate(lambda state: inner.step(moved, state), state, self.steps)
            value = moved.outer_loss(state.params)
            return value, (value, state.params, jax.lax.stop_gradient(state.progress))

        if self.kind == "forward":
            grad, (value, params, progress) = _forward_gradient(run, moving)
            sweeps = sum(leaf.size for leaf in jax.tree.leaves(moving))
        else:
            grad, (value, params, progress) = jax.grad(run, has_aux=True)(moving)
            sweeps = 2 if self.kind == "checkpointed" else 1
        verdict = None if self.verdict == "off" else unexamined(value.dtype)
        if self.verdict == "full" and not misfits(at.problem, inner):
            point = Linearized.of(at, optimality.of(at.problem), params)
            verdict = judge("full", point, grad, _tree.zeros_like(params), jnp.nan, suspected=True)
        return Hypergradient(
            grad=grad,
            outer_loss=value,
            outer_error=jnp.array(jnp.nan, value.dtype),
            params=params,
            carry=carry,
            solves={"inner": Solve(progress.status, progress.residual, intended=True)},
            counts={"grad_evals": progress.grad_evals, "hvps": progress.hvps + sweeps * progress.steps},
            verdict=verdict,
        )


def _plain(step: _Step, state: Any, steps: int) -> Any:
    return jax.lax.scan(lambda state, _: (step(state), None), state, length=steps)[0]


def _conditional(step: _Step, state: Any, steps: int) -> Any:
    def body(state: Any, _: None) -> tuple[Any, None]:
        running = state.progress.status == Status.MAX_STEPS
        return jax.lax.cond(running, step, lambda state: state, state), None

    return jax.lax.scan(body, state, length=steps)[0]


def _checkpointed(step: _Step, state: Any, steps: int) -> Any:
    """Blocks of √T steps; reverse mode keeps the state at the start of each block."""
    length = math.isqrt(steps)
    block = jax.checkpoint(lambda state: _plain(step, state, length), prevent_cse=False)
    state = _plain(block, state, steps // length)
    rest = steps % length
    return jax.checkpoint(lambda state: _plain(step, state, rest))(state) if rest else state


_ITERATE = {"plain": _plain, "conditional": _conditional, "checkpointed": _checkpointed}


def _forward_gradient(run: Callable[[PyTree], tuple[jax.Array, Any]], moving: PyTree) -> tuple[PyTree, Any]:
    flat, unravel = ravel_pytree(moving)
    grad, aux = jax.jacfwd(lambda flat: run(unravel(flat)), has_aux=True)(flat)
    return unravel(grad.astype(flat.dtype)), aux
