"""Is F zero at what a solver returned, and is it fit to be differentiated there?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _compiled, _tree, implicit, linear, optimality
from bilevel._status import Status, describe
from bilevel._tree import PyTree
from bilevel.diagnostics._numeric import directions_like, restricted, tangents_of, unit
from bilevel.optimality import Bound
from bilevel.problem import Problem

_PROBES = 4
_REACH = 1e-6


@dataclasses.dataclass(frozen=True)
class OptimalityReport:
    """What `check_optimality` found; print it.

    Attributes:
      residual: ‖F(x)‖₂.
      distance: ‖A⁻¹F(x)‖₂/‖x‖₂, the Newton estimate of how far x is from a root, relative to x.
      tolerance: what `distance` is held against.
      solve: how the linear solves with A = ∂₁F ended, in words.
      asymmetry: |⟨v, Aw⟩ − ⟨Av, w⟩| relative to the products, the largest of the probes; None if A is not said to be
        symmetric.
      amplification: an estimate from below of ‖A⁻¹‖‖A‖, the condition of the linear system.
      dot_test: |⟨w, ẋ⟩ − ⟨x̄, θ̇⟩| relative to ‖w‖‖ẋ‖, JVP against VJP, the largest of the probes.
      jump: how much F's Jacobian changes, relative to itself, within 1e-6 of x and its arguments: large at a
        kink, where strict complementarity nearly fails.
      margin: the least of max(λᵢ, −Gᵢ) relative to the largest λ and G, for inequalities; None without.
      problems: a sentence for each thing that is wrong.
    """

    residual: float
    distance: float
    tolerance: float
    solve: str
    asymmetry: float | None
    amplification: float
    dot_test: float
    jump: float
    margin: float | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        asymmetry = "not symmetric by declaration" if self.asymmetry is None else f"{self.asymmetry:.1e}"
        lines = [
            "check_optimality: " + ("fine" if self.ok else f"{len(self.problems)} problem(s)"),
            f"  ‖F(x)‖                       {self.residual:.1e}",
            f"  distance to a root / ‖x‖     {self.distance:.1e}   (tolerance {self.tolerance:.1e})",
            f"  linear solves                {self.solve}",
            f"  condition of ∂₁F, at least   {self.amplification:.1e}",
            f"  asymmetry of the system      {asymmetry}",
            f"  JVP against VJP              {self.dot_test:.1e}",
            f"  change of ∂F nearby          {self.jump:.1e}",
        ]
        if self.margin is not None:
            lines.append(f"  complementarity margin       {self.margin:.1e}")
        return "\n".join([*lines, *(f"  ✗ {problem}" for problem in self.problems)])


def check_optimality(
    condition: Problem | Callable[..., PyTree],
    params: PyTree,
    *args: Any,
    solve: linear.LinearSolver | Callable[..., Any] | None = None,
    rtol: float | None = None,
    seed: int = 0,
) -> OptimalityReport:
    """Check that a solver's answer is a root of the condition by which it will be differentiated.

    Args:
      condition: a `Problem` (its `optimality` is taken), or F(params, *args), as `custom_root` takes it.
      params: what the solver returned.
      *args: the other arguments of F; for a problem `hparams, data`.
      solve: linear solver, as in `custom_root`.
      rtol: how far from a root, relative to ‖params‖, is near enough; None is ε^⅓ (6e-6 in float64, 5e-3 in float32).
      seed: of the probing directions.

    Returns:
      OptimalityReport, readable by `print`. Raises nothing on a numerical failure.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> F = jax.grad(lambda x, theta: jnp.sum((x - 1) ** 2) + theta * jnp.sum(x**2))
      >>> report = bl.check_optimality(F, jnp.full(3, 0.6), 1.0, rtol=1e-3)         # the root is 0.5
      >>> report.ok, report.problems[0]
      (False, 'params is not a root: about 1.7e-01 of its norm away, more than 1.0e-03: tighten the solver, or correct F')
    """
    function = optimality.bind(condition) if isinstance(condition, Problem) else condition
    params, args = _tree.as_arrays(params), tuple(_tree.as_data(each) for each in args)
    function, args = _Flat(function, jax.tree.structure(args)), tuple(jax.tree.leaves(args))
    _tree.check_like("the value of the condition", jax.eval_shape(function, params, *args), "params", params)
    solver = linear.as_solver(solve, linear.Auto())
    probes = directions_like(params, 2 * _PROBES, seed), directions_like(args, _PROBES, seed + 1)
    measured = _compiled.compiled(_measure, function, solver)(params, args, *probes)
    found: dict[str, Any] = {name: None if value is None else float(value) for name, value in measured.items()}
    found["solve"] = describe(int(measured["solve"]))
    found["tolerance"] = _tree.eps(params) ** (1 / 3) if rtol is None else rtol
    return OptimalityReport(**found, problems=tuple(_problems(found, params)))


def _problems(found: dict[str, Any], params: PyTree):
    root = _tree.eps(params) ** 0.5
    if not np.isfinite(found["residual"]):
        yield "F is not finite at params: look for a NaN in params or the data"
    elif not found["distance"] <= found["tolerance"]:
        yield (
            f"params is not a root: about {found['distance']:.1e} of its norm away, more than {found['tolerance']:.1e}: "
            "tighten the solver, or correct F"
        )
    if not found["solve"].startswith("converged"):
        yield f"the linear system with ∂₁F is not solved, {found['solve']}"
    if found["asymmetry"] is not None and not found["asymmetry"] <= 10 * root:
        yield "the system is declared symmetric and is not: F is not the gradient of a scalar, or its structure is misstated"
    if not found["dot_test"] <= 100 * root:
        yield f"JVP and VJP disagree by {found['dot_test']:.1e}: use a tighter linear solver, or one that suits ∂₁F"
    if not found["jump"] <= 1e-2:
        yield (
            f"∂F changes by {found['jump']:.0%} right beside params: strict complementarity nearly fails (a coordinate sits "
            "at a kink), and the derivative is that of one side"
        )
    if found["margin"] is not None and not found["margin"] >= root:
        yield (
            f"an inequality and its multiplier both vanish (margin {found['margin']:.1e}): strict complementarity nearly "
            "fails, and the derivative takes the constraint as inactive"
        )


def _measure(function, solver, params, args, probes, arg_probes) -> dict[str, Any]:
    system = function.system(params, *args)
    value = function(params, *args)
    correction = system.solve(solver, value)
    norm = _tree.norm(params)
    amplification, status = _amplification(system, solver, params, jax.tree.map(lambda p: p[0], probes))
    return {
        "residual": _tree.norm(value),
        "distance": _tree.norm(correction.value) / jnp.where(norm > 0, norm, 1),
        "solve": jnp.maximum(correction.status, status),
        "asymmetry": _asymmetry(system, params, probes),
        "amplification": amplification,
        "dot_test": _dot_test(function, solver, params, args, probes, arg_probes),
        "jump": _jump(function, params, args, probes, arg_probes),
        "margin": function.margin(params, *args),
    }


@dataclasses.dataclass(frozen=True)
class _Flat(linear.RootFunction):
    """F as a function of params and the leaves of its other arguments, among which a sparse matrix is several plain arrays."""

    function: Callable[..., PyTree]
    structure: Any

    def __call__(self, params: PyTree, *leaves: jax.Array) -> PyTree:
        return self.function(params, *jax.tree.unflatten(self.structure, leaves))

    def system(self, params: PyTree, *leaves: jax.Array) -> linear.System:
        if isinstance(self.function, linear.RootFunction):
            return self.function.system(params, *jax.tree.unflatten(self.structure, leaves))
        _, push = jax.linearize(lambda x: _tree.cast_like(self(x, *leaves), x), params)
        return linear.System(linear.Operator(push))

    def margin(self, params: PyTree, *leaves: jax.Array) -> jax.Array | None:
        if isinstance(self.function, Bound):
            return self.function.margin(params, *jax.tree.unflatten(self.structure, leaves))
        return None


def _amplification(system, solver, params, start):
    """‖A‖‖A⁻¹‖ by two power steps on each, from below, and the worst status on the way."""
    forward_product, backward_product = system.operator.matvec, system.operator.transpose(params).matvec
    largest = smallest = start
    status = jnp.int32(Status.CONVERGED)
    for _ in range(2):
        largest = unit(backward_product(forward_product(largest)))
        forward = system.solve(solver, smallest)
        backward = system.solve_transposed(solver, forward.value)
        status = jnp.maximum(status, jnp.maximum(forward.status, backward.status))
        smallest = unit(backward.value)
    return _tree.norm(forward_product(largest)) * _tree.norm(system.solve(solver, smallest).value), status


def _asymmetry(system: linear.System, params, probes):
    operator, restrict = system.operator, lambda v: v
    if system.reduction is not None:
        operator, restrict = system.reduction.operator, system.reduction.restrict
    if operator.structure == "general":
        return None

    def defect(v, w):
        v, w = unit(restrict(v)), unit(restrict(w))
        left, right = operator.matvec(v), operator.matvec(w)
        scale = _tree.norm(left) + _tree.norm(right)
        return jnp.abs(_tree.vdot(left, w) - _tree.vdot(v, right)) / jnp.where(scale > 0, scale, 1)

    return jnp.max(jax.vmap(defect)(*_halves(probes)))


def _dot_test(function, solver, params, args, probes, arg_probes):
    if not jax.tree.leaves(arg_probes):
        return jnp.zeros(())

    def defect(pair):
        cotangent, direction = pair
        moving = implicit.root_jvp(function, params, args, tangents_of(args, direction), solver)
        pulled = implicit.root_vjp(function, params, args, cotangent, solver)
        pulled = restricted(pulled, direction)
        scale = _tree.norm(moving)
        return jnp.abs(_tree.vdot(cotangent, moving) - _tree.vdot(pulled, direction)) / jnp.where(scale > 0, scale, 1)

    return jnp.max(jax.lax.map(defect, (_halves(probes)[0], arg_probes)))


def _jump(function, params, args, probes, arg_probes):
    """The largest change of a product with F's Jacobian, relative to its largest entry, where all arguments move a little."""

    def change(probe):
        v, side, arg_side = probe
        tangents = (v, *tangents_of(args, arg_side))

        def product(x, args):
            return jax.jvp(lambda x, *args: _tree.cast_like(function(x, *args), params), (x, *args), tangents)[1]

        here = product(params, args)
        changes = []
        for amount in (_REACH, -_REACH):
            there = product(_nudged(params, amount, side), _nudged(args, amount, arg_side))
            changes.append(_largest(_tree.sub(there, here)))
        scale = _largest(here)
        return jnp.maximum(*changes) / jnp.where(scale > 0, scale, 1)

    v, side = _halves(probes)
    return jnp.max(jax.lax.map(change, (v, side, arg_probes)))


def _nudged(tree, amount, direction):
    """Each leaf moved by `amount` relative to its own norm (absolutely where that is zero)."""
    moving, fixed = _tree.split(tree)

    def nudge(x, d):
        size = jnp.linalg.norm(jnp.ravel(x))
        return x + (amount * jnp.where(size > 0, size, 1)).astype(x.dtype) * d

    return _tree.merge(jax.tree.map(nudge, moving, direction), fixed)


def _largest(tree: PyTree):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if x.size]))


def _halves(probes):
    return jax.tree.map(lambda p: p[:_PROBES], probes), jax.tree.map(lambda p: p[_PROBES:], probes)
