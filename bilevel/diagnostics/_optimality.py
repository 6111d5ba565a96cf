"""Is F zero at the answer of a solver, and can it be differentiated there?"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _compiled, _tree, implicit, linear, optimality
from bilevel._status import Status, describe
from bilevel._tree import PyTree
from bilevel.diagnostics._numeric import Checked, directions_like, unit
from bilevel.optimality import Bound
from bilevel.problem import Problem

_PROBES = 4
_REACH = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimalityReport(Checked):
    """The result of `check_optimality`; readable by `print`.

    Attributes:
      residual: ‖F(x)‖₂.
      distance: ‖A⁻¹F(x)‖₂/‖x‖₂, the Newton estimate of the distance of x from a root, relative to x.
      tolerance: the largest distance that passes.
      solve: how the linear solves with A = ∂₁F ended, in words.
      asymmetry: |⟨v, Aw⟩ − ⟨Av, w⟩| relative to the products, the largest of the probes; None if A is not declared
        symmetric.
      amplification: a lower estimate of ‖A⁻¹‖‖A‖, the condition number of the linear system.
      dot_test: |⟨w, ẋ⟩ − ⟨x̄, θ̇⟩| relative to ‖w‖‖ẋ‖, JVP against VJP, the largest of the probes.
      jump: how much F's Jacobian changes, relative to itself, within 1e-6 of x and its arguments: large at a
        kink, where strict complementarity nearly fails.
      margin: the least of max(λᵢ, −Gᵢ) relative to the largest λ and G, for inequalities; None without.
      problems: a sentence for each thing that is wrong.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> report = bl.check_optimality(lambda x, theta: 2 * (x - theta), jnp.ones(2), 1.0)
      >>> print(str(report).splitlines()[0], report.solve.split(":")[0], report.margin)
      check_optimality: fine converged None
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

    def __str__(self) -> str:
        asymmetry = "not declared symmetric" if self.asymmetry is None else f"{self.asymmetry:.1e}"
        lines = [
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
        return self._printed("check_optimality", lines)


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
      condition: a `Problem`, for its `optimality`, or F(params, *args), as `custom_root` takes it; raises ValueError if its
        value differs from params in structure or shapes.
      params: the solver's answer, any pytree of floating-point arrays.
      *args: the other arguments of F; for a problem `hparams, data`.
      solve: linear solver, as in `custom_root`.
      rtol: the distance from a root, relative to ‖params‖, that passes; None is ε^⅓ (6e-6 in float64, 5e-3 in float32).
      seed: seed of the probing directions.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> F = jax.grad(lambda x, theta: jnp.sum((x - 1) ** 2) + theta * jnp.sum(x**2))
      >>> report = bl.check_optimality(F, jnp.full(3, 0.6), 1.0, rtol=1e-3)         # the root is 0.5
      >>> report.ok, report.problems[0]
      (False, 'params is not a root: about 1.7e-01 of its norm away, more than 1.0e-03: tighten the solver, or correct F')
    """
    function = optimality.bind(condition) if isinstance(condition, Problem) else condition
    params, args = _tree.as_arrays(params), tuple(_tree.as_data(each) for each in args)
    _tree.check_like("the value of the condition", jax.eval_shape(function, params, *args), "params", params)
    solver = linear.as_solver(solve, linear.Auto())
    probes = directions_like(params, 2 * _PROBES, seed)
    v, w = (jax.tree.map(lambda p, half=half: p[half], probes) for half in (slice(_PROBES), slice(_PROBES, None)))
    along = directions_like(tuple(jax.tree.leaves(args)), _PROBES, seed + 1)
    measured = _compiled.compiled(_measure, function, solver)(params, args, v, w, along)
    found: dict[str, Any] = {name: None if value is None else float(value) for name, value in measured.items()}
    found["solve"] = describe(int(measured["solve"]))
    found["tolerance"] = _tree.eps(params) ** (1 / 3) if rtol is None else rtol
    return OptimalityReport(**found, problems=tuple(_problems(found, params)))


def _problems(found: dict[str, Any], params: PyTree) -> Iterator[str]:
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
            "at a kink), and the derivative is the one from one side"
        )
    if found["margin"] is not None and not found["margin"] >= root:
        yield (
            f"an inequality and its multiplier both vanish (margin {found['margin']:.1e}): strict complementarity nearly "
            "fails, and the derivative takes the constraint as inactive"
        )


def _measure(
    function: Callable[..., PyTree],
    solver: linear.LinearSolver,
    params: PyTree,
    args: tuple[PyTree, ...],
    *probes: PyTree,
) -> dict[str, Any]:
    leaves, structure = jax.tree.flatten(args)
    moving, fixed = _tree.split(tuple(leaves))
    return _Probed(_OfMoving(function, structure, fixed), solver, params, moving, *probes).measured()


@dataclasses.dataclass(frozen=True)
class _OfMoving(linear.RootFunction):
    """F as a function of params and the differentiable leaves of its other arguments; the `fixed` leaves are constants."""

    function: Callable[..., PyTree]
    structure: Any
    fixed: tuple[Any, ...]

    def _args(self, moving: tuple[Any, ...]) -> tuple[PyTree, ...]:
        return jax.tree.unflatten(self.structure, _tree.merge(moving, self.fixed))

    def __call__(self, params: PyTree, *moving: Any) -> PyTree:
        return _tree.cast_like(self.function(params, *self._args(moving)), params)

    def system(self, params: PyTree, *moving: Any) -> linear.System:
        if isinstance(self.function, linear.RootFunction):
            return self.function.system(params, *self._args(moving))
        return linear.System(linear.Operator(jax.linearize(lambda x: self(x, *moving), params)[1]))

    def margin(self, params: PyTree, *moving: Any) -> jax.Array | None:
        return self.function.margin(params, *self._args(moving)) if isinstance(self.function, Bound) else None


@dataclasses.dataclass(frozen=True)
class _Probed:
    """F at a point, and random directions of unit norm, stacked: v and w like params, along like args (None in the gaps)."""

    function: _OfMoving
    solver: linear.LinearSolver
    params: PyTree
    args: tuple[Any, ...]
    v: PyTree
    w: PyTree
    along: tuple[Any, ...]

    def measured(self) -> dict[str, Any]:
        """The numbers of an `OptimalityReport`."""
        system = self.function.system(self.params, *self.args)
        value = self.function(self.params, *self.args)
        correction = system.solve(self.solver, value)
        amplification, status = self._amplification(system)
        return {
            "residual": _tree.norm(value),
            "distance": _tree.norm(correction.value) / _tree.positive(_tree.norm(self.params)),
            "solve": jnp.maximum(correction.status, status),
            "asymmetry": self._asymmetry(system),
            "amplification": amplification,
            "dot_test": self._dot_test(),
            "jump": self._jump(),
            "margin": self.function.margin(self.params, *self.args),
        }

    def _amplification(self, system: linear.System) -> tuple[jax.Array, jax.Array]:
        """‖A‖‖A⁻¹‖ by two power steps on each, from below, and the worst status on the way."""
        push, pull = system.operator.matvec, system.operator.transpose(self.params).matvec
        largest = smallest = jax.tree.map(lambda v: v[0], self.v)
        status = jnp.int32(Status.CONVERGED)
        for _ in range(2):
            largest = unit(pull(push(largest)))
            forward = system.solve(self.solver, smallest)
            backward = system.solve_transposed(self.solver, forward.value)
            status = jnp.maximum(status, jnp.maximum(forward.status, backward.status))
            smallest = unit(backward.value)
        return _tree.norm(push(largest)) * _tree.norm(system.solve(self.solver, smallest).value), status

    def _asymmetry(self, system: linear.System) -> jax.Array | None:
        operator, restrict = system.operator, lambda v: v
        if system.reduction is not None:
            operator, restrict = system.reduction.operator, system.reduction.restrict
        if operator.structure == "general":
            return None

        def defect(v: PyTree, w: PyTree) -> jax.Array:
            v, w = unit(restrict(v)), unit(restrict(w))
            left, right = operator.matvec(v), operator.matvec(w)
            scale = _tree.norm(left) + _tree.norm(right)
            return jnp.abs(_tree.vdot(left, w) - _tree.vdot(v, right)) / _tree.positive(scale)

        return jnp.max(jax.vmap(defect)(self.v, self.w))

    def _dot_test(self) -> jax.Array:
        if not jax.tree.leaves(self.along):
            return jnp.zeros(())

        def defect(probe: tuple[PyTree, tuple[Any, ...]]) -> jax.Array:
            cotangent, direction = probe
            moved = implicit.root_jvp(self.function, self.params, self.args, direction, self.solver)
            pulled = implicit.root_vjp(self.function, self.params, self.args, cotangent, self.solver)
            difference = jnp.abs(_tree.vdot(cotangent, moved) - _tree.vdot(pulled, direction))
            return difference / _tree.positive(_tree.norm(moved))

        return jnp.max(jax.lax.map(defect, (self.v, self.along)))

    def _jump(self) -> jax.Array:
        """The largest change of a product with F's Jacobian, relative to its largest entry, where all arguments move a little."""

        def change(probe: tuple[PyTree, PyTree, tuple[Any, ...]]) -> jax.Array:
            v, side, along = probe

            def product(amount: float) -> PyTree:
                point = _nudged((self.params, *self.args), amount, (side, *along))
                return jax.jvp(self.function, point, (v, *along))[1]

            here = product(0.0)
            changes = [_largest(_tree.sub(product(amount), here)) for amount in (_REACH, -_REACH)]
            return jnp.maximum(*changes) / _tree.positive(_largest(here))

        return jnp.max(jax.lax.map(change, (self.v, self.w, self.along)))


def _nudged(tree: PyTree, amount: float, direction: PyTree) -> PyTree:
    """Each leaf moved by `amount` relative to its own norm (absolutely where that is zero)."""

    def nudge(x: jax.Array, d: jax.Array) -> jax.Array:
        return x + (amount * _tree.positive(jnp.linalg.norm(jnp.ravel(x)))).astype(x.dtype) * d

    return jax.tree.map(nudge, tree, direction)


def _largest(tree: PyTree) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if x.size]))
