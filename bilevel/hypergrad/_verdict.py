"""A verdict on a hypergradient: how far the hypergradient at the Newton point is from it.

With A δ = −F(x), the point x⁺ = x + δ is the inner solution to second order. The hypergradient there, by an adjoint solved
to the full precision, is then exact to second order too, and its distance from the one that was returned estimates the error.
It has two parts: what a loose adjoint causes at x, and what changes from x to x⁺. The estimate is trusted only if Newton's
method converges (a second step is shorter than the first) and no kink of the condition is within reach of x.

In full this takes four linear solves. The cheap verdict first bounds the same error roughly: with the adjoint Aᵀu = w,

    ‖δ‖ ≲ ‖F‖ ‖u‖/‖w‖,

the sensitivity of the hypergradient to it and the effect of the adjoint's residual from one product with Aᵀ and Bᵀ. If ten times
this estimate is not small, a solve failed or the hypergradient is biased by design, the cheap verdict is "doubtful", for want of
a full one, which the loop then makes.
"""

import dataclasses
import enum
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.hypergrad._linearized import Linearized
from bilevel.linear import Auto, LinearSolution, System

Mode = Literal["cheap", "full", "off"]
MODES = get_args(Mode)

_SAFETY = 10.0  # of rough estimates
_SMALL = 0.05  # relative error of a trusted hypergradient
_LARGE = 0.5  # relative error of a failed one
_QUIET = 0.01  # a rough estimate below this needs no full one
_FAR = 0.1  # Newton step relative to the solution
_CLOSE = 0.01  # a second Newton step that need not be shorter than the first


class Level(enum.IntEnum):
    """How far a hypergradient can be used.

    Example:
      >>> import bilevel as bl
      >>> bl.hypergrad.Level.DOUBTFUL.word
      'doubtful'
    """

    TRUSTED = 0
    DOUBTFUL = 1
    FAILED = 2

    @property
    def word(self) -> str:
        """The level as in `metrics.jsonl`."""
        return self.name.lower()


class Reason(enum.IntEnum):
    """Why a hypergradient is not trusted; `sentence` says it in words.

    Example:
      >>> import bilevel as bl
      >>> bl.hypergrad.Reason.ADJOINT.sentence[:35]
      'the adjoint solve is not precise en'
    """

    NONE = 0
    NOT_FINITE = 1
    UNSOLVED = 2
    FAR = 3
    NOT_A_ROOT = 4
    KINK = 5
    ADJOINT = 6
    INNER = 7
    SOLVES = 8
    UNEXAMINED = 9

    @property
    def sentence(self) -> str:
        """The cause, and what to try."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.NONE: "nothing was found wrong",
    Reason.NOT_FINITE: "the hypergradient, or the one at the Newton point, is not finite",
    Reason.UNSOLVED: "the linear systems with the Jacobian of the optimality condition cannot be solved to the precision: the "
    "inner point is not a minimum, or the problem is singular or too ill-conditioned for the precision",
    Reason.FAR: "the inner solution is not a root of the optimality condition: a Newton step moves it by more than a tenth; "
    "lower inner.rtol, or check that solver and condition belong to the same problem",
    Reason.NOT_A_ROOT: "Newton's method on the optimality condition does not converge from the inner solution: lower inner.rtol, "
    "or check the condition",
    Reason.KINK: "the inner solution is closer to a kink of the optimality condition than its error, so that the derivative may "
    "be the one of another side: lower inner.rtol",
    Reason.ADJOINT: "the adjoint solve is not precise enough, or is biased by design (damping, truncation): lower linear.rtol, "
    "or use another linear solver",
    Reason.INNER: "the inner solution is not precise enough: lower inner.rtol, or use float64",
    Reason.SOLVES: "a solve did not converge",
    Reason.UNEXAMINED: "a rough estimate of its error is not small, or it is biased by design; verdict=full estimates the error",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """How far a hypergradient can be used, and why. All are scalars; errors are relative to the hypergradient's norm.

    Attributes:
      level: int32 code of `Level`. Trusted: an estimated error of at most 5 %; failed: more than 50 %, or not finite.
      reason: int32 code of `Reason`.
      error_estimate: the estimated error. The cheap verdict gives ten times a rough estimate where that is below 1 %.
      adjoint_error: the part that a loose or biased adjoint causes; NaN where only the rough estimate was made.
      inner_error: the part that the error of the inner solution causes; NaN likewise.
      newton_step: the length of a Newton step of the inner problem, relative to the solution; roughly estimated likewise.
      condition: a lower estimate of the condition number of A = ∂₁F, from one product and the adjoint.
      jump: how much the product Aᵀu changes within ten Newton steps, relative to itself: large near a kink.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: (x - h) ** 2, lambda x, h, d: x**2)
      >>> verdict = bl.hypergrad.Implicit(verdict="full").run(problem, bl.inner.Newton(), jnp.array(0.0), jnp.array(3.0)).verdict
      >>> verdict.word, bool(verdict.error_estimate < 1e-6)
      ('trusted', True)
    """

    level: jax.Array
    reason: jax.Array
    error_estimate: jax.Array
    adjoint_error: jax.Array
    inner_error: jax.Array
    newton_step: jax.Array
    condition: jax.Array
    jump: jax.Array

    @property
    def word(self) -> str:
        """The level in a word; on the host only."""
        return Level(int(self.level)).word

    @property
    def sentence(self) -> str:
        """The reason in a sentence; on the host only."""
        return Reason(int(self.reason)).sentence


def judge(
    mode: Mode,
    here: Linearized,
    grad: PyTree,
    adjoint: PyTree,
    adjoint_residual: jax.Array | float,
    suspected: jax.Array | bool,
) -> Verdict | None:
    """The verdict on a hypergradient.

    Args:
      mode: "off" gives None.
      here: the linearization at the inner solution.
      grad: the hypergradient.
      adjoint: u, or a start for it if the estimator has none.
      adjoint_residual: ‖Aᵀu − w‖/‖w‖; NaN if the estimator has none.
      suspected: whether a solve failed or the estimate is biased by design.
    """
    if mode == "off":
        return None
    if mode == "full":
        return _examined(here, grad, adjoint)
    rough = _rough(here, grad, adjoint, adjoint_residual)
    quiet = (rough.error_estimate <= _QUIET) & (rough.jump <= _SMALL) & jnp.logical_not(suspected)
    return dataclasses.replace(
        rough,
        level=jnp.where(quiet, rough.level, Level.DOUBTFUL).astype(jnp.int32),
        reason=jnp.where(quiet, rough.reason, Reason.UNEXAMINED).astype(jnp.int32),
    )


def unexamined(dtype: Any) -> Verdict:
    """The cheap verdict on a hypergradient that is biased by design, and has no adjoint."""
    nothing = jnp.zeros((), dtype)
    return _verdict(nothing, Level.DOUBTFUL, Reason.UNEXAMINED, *[jnp.nan] * 6)


def _rough(here: Linearized, grad: PyTree, adjoint: PyTree, adjoint_residual: jax.Array | float) -> Verdict:
    probe = _tree.signs(here.params)
    along, pulled = here.pull(probe)
    u = _tree.norm(adjoint)
    inverse = u / _tree.positive(_tree.norm(here.cotangent))
    step = _relative(inverse * _tree.norm(here.residual), _tree.norm(here.params))
    condition = inverse * _tree.norm(along) / _tree.size(probe) ** 0.5
    terms = _terms(here, u, pulled)
    amplified = jnp.maximum(_relative(terms, jnp.maximum(_tree.norm(grad).astype(u.dtype), _rounding(here, terms))), 1)
    error = _SAFETY * (step + condition * adjoint_residual) * amplified
    jump = _jump(here, adjoint, step)
    return _verdict(u, Level.TRUSTED, Reason.NONE, error, jnp.nan, jnp.nan, step, condition, jump)


def _terms(here: Linearized, adjoint_norm: jax.Array, pulled: PyTree) -> jax.Array:
    """The size of the terms of the hypergradient, with ‖B‖ from the product with a vector of signs."""
    rank = max(min(_tree.size(here.params), _tree.size(pulled)), 1)
    spread = (_tree.norm(pulled) / rank**0.5).astype(adjoint_norm.dtype)
    return _tree.norm(here.direct).astype(adjoint_norm.dtype) + adjoint_norm * spread


def _rounding(here: Linearized, terms: jax.Array) -> jax.Array:
    """A hypergradient below this is rounding, and zero."""
    return _SAFETY * _tree.eps(here.params) / _SMALL * terms


class _Newton(NamedTuple):
    """The hypergradient at an inner point, and a Newton step of the inner problem from there."""

    grad: PyTree
    adjoint: PyTree
    step: jax.Array
    solution: jax.Array
    cotangent: jax.Array
    gain: jax.Array
    solved: jax.Array


def _examined(here: Linearized, grad: PyTree, adjoint: PyTree) -> Verdict:
    def newton(start: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], _Newton]:
        params, adjoint = start
        point = Linearized.of(here.at, here.condition, params)
        system = point.system if point.system.approximate is False else System(point.system.operator)
        step = system.solve(Auto(), _tree.scale(-1, point.residual))
        found = system.solve_transposed(Auto(), point.cotangent, adjoint)
        following = _tree.add_scaled(params, 1, step.value)
        length = _tree.norm(step.value)
        return (following, found.value), _Newton(
            grad=point.gradient(found.value),
            adjoint=found.value,
            step=length,
            solution=_tree.norm(following),
            cotangent=_tree.norm(point.cotangent),
            gain=_tree.norm(point.system.operator(step.value)) / _tree.positive(length),
            solved=_solved(step) & _solved(found),
        )

    _, both = jax.lax.scan(newton, (here.params, adjoint), length=2)
    first, second = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
    terms = _terms(here, _tree.norm(first.adjoint), here.pull(_tree.signs(here.params))[1])
    size = jnp.maximum(
        jnp.maximum(_tree.norm(grad), _tree.norm(second.grad)).astype(terms.dtype), _rounding(here, terms)
    )
    adjoint_error, inner_error, error = (
        _relative(_tree.norm(_tree.sub(a, b)), size)
        for a, b in ((first.grad, grad), (second.grad, first.grad), (second.grad, grad))
    )
    step, following = _relative(first.step, first.solution), _relative(second.step, first.solution)
    condition = first.gain * _tree.norm(first.adjoint) / _tree.positive(first.cotangent)
    jump = _jump(here, first.adjoint, step)
    finite = _tree.all_finite((grad, second.grad)) & jnp.isfinite(error)
    reasons = {
        Reason.NOT_FINITE: ~finite,
        Reason.UNSOLVED: ~(first.solved & second.solved),
        Reason.FAR: ~(step <= _FAR),
        Reason.NOT_A_ROOT: ~(following <= jnp.maximum(step / 2, _CLOSE)),
        Reason.KINK: ~(jump <= _SMALL),
        Reason.ADJOINT: ~(adjoint_error <= _SMALL),
        Reason.INNER: ~(inner_error <= _SMALL),
    }
    reason = jnp.int32(Reason.NONE)
    for cause, holds in reversed(reasons.items()):
        reason = jnp.where(holds, jnp.int32(cause), reason)
    level = jnp.where((error > _LARGE) | ~finite, Level.FAILED, Level.DOUBTFUL)
    level = jnp.where(reason == Reason.NONE, Level.TRUSTED, level)
    return _verdict(jump, level, reason, error, adjoint_error, inner_error, step, condition, jump)


def _solved(found: LinearSolution) -> jax.Array:
    """To the precision: a residual that stagnates is as small as it can be."""
    return (found.status == Status.CONVERGED) | (found.status == Status.STAGNATED)


def _relative(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part/whole; a part of nothing is infinite, unless it is nothing too."""
    return jnp.where(part == 0, jnp.zeros_like(part), part / jnp.where(part == 0, jnp.ones_like(whole), whole))


def _jump(here: Linearized, adjoint: PyTree, step: jax.Array) -> jax.Array:
    reach = _SAFETY * jnp.maximum(step, 4 * _tree.eps(here.params))
    change = here.condition.jump(here.at, here.params, adjoint, reach)
    return change / _tree.positive(_tree.norm(here.cotangent))


def _verdict(like: jax.Array, level: jax.Array | int, reason: jax.Array | int, *numbers: jax.Array | float) -> Verdict:
    return Verdict(
        jnp.asarray(level, jnp.int32), jnp.asarray(reason, jnp.int32), *(jnp.asarray(n, like.dtype) for n in numbers)
    )
