"""What an entry of the catalog is: a condition at a point, an independent oracle, and the modes that are compared."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.inner import InnerSolution, InnerSolver, SolveProgress

CLOSED, DIFFERENCES, NONSYMMETRIC_CONES = 1e-8, 1e-6, 1e-5
DIRECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem at hparams with its solution, and what of the solution is compared.

    Args:
      measure: (params, hparams) -> the quantity that is differentiated; part of what an outer loss would be.
    """

    problem: bl.Problem
    hparams: Any
    solution: Any
    data: Any = None
    measure: Callable[[Any, Any], Any] = lambda params, hparams: params

    @property
    def bound(self):
        """F."""
        return bl.optimality.bind(self.problem)

    @functools.cached_property
    def value(self):
        """The measured quantity at the solution."""
        return jax.jit(self.measure)(self.solution, self.hparams)

    def implicit(self, hparams):
        """The measured quantity, differentiable by bilevel."""
        solver = bl.custom_root(self.bound)(lambda init, hparams, data: self.solution)
        return self.measure(solver(None, hparams, self.data), hparams)

    def directions(self):
        """Seeded directions in hparams, each leaf on the scale of its own values."""
        rng = np.random.default_rng(11)

        def draw(x):
            scale = np.sqrt(np.mean(np.square(x)))
            return jnp.asarray(rng.normal(size=np.shape(x)) * (scale if scale > 0 else 1))

        return [jax.tree.map(draw, self.hparams) for _ in range(DIRECTIONS)]

    def cotangents(self):
        """Seeded cotangents of the measured quantity."""
        rng = np.random.default_rng(12)
        return [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), self.value) for _ in range(DIRECTIONS)]


@dataclasses.dataclass
class Oracle:
    """Directional derivatives of the measured quantity, from elsewhere.

    Args:
      jvp: a direction in hparams -> the tangent along it.
      vjp, jacobian: where the oracle has them.
    """

    jvp: Callable[[Any], Any]
    vjp: Callable[[Any], Any] | None = None
    jacobian: Callable[[], Any] | None = None
    _tangents: list | None = None

    def tangents(self, directions):
        """Those along all directions, computed once."""
        if self._tangents is None:
            self._tangents = [self.jvp(d) for d in directions]
        return self._tangents


def closed(case: Case, function: Callable[[Any], Any]) -> Oracle:
    """By a closed form of the measured quantity as a function of hparams."""
    hparams = case.hparams
    agree(jax.jit(function)(hparams), case.value, 1e-9)
    return Oracle(
        jvp=jax.jit(lambda d: jax.jvp(function, (hparams,), (d,))[1]),
        vjp=jax.jit(lambda w: jax.vjp(function, hparams)[1](w)[0]),
        jacobian=jax.jit(lambda: jax.jacrev(function)(hparams)),
    )


def differences(case: Case, solve, h: float, pattern=lambda value: (), accuracy: float = 1e-7) -> Oracle:
    """By central differences of a solver, with two Richardson extrapolations, over one piece of the solution path.

    Args:
      case: the problem at its point.
      solve: hparams -> the measured quantity.
      h: the largest step, relative to the direction.
      pattern: measured quantity -> the active set, asserted to be the same at all points.
      accuracy: how near solve(hparams) must come to the case's solution.
    """
    agree(solve(case.hparams), case.value, accuracy)
    expected = np.asarray(pattern(case.value))

    def at(direction, t):
        value = solve(jax.tree.map(lambda x, d: x + t * d, case.hparams, direction))
        np.testing.assert_array_equal(np.asarray(pattern(value)), expected, "the active set changed")
        return value

    def central(direction, step):
        ahead, behind = at(direction, step), at(direction, -step)
        return jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * step), ahead, behind)

    def jvp(direction):
        table = [central(direction, h / 2**level) for level in range(3)]
        for order in (4, 16):
            table = [
                jax.tree.map(lambda fine, coarse: (order * fine - coarse) / (order - 1), fine, coarse)  # noqa: B023
                for coarse, fine in itertools.pairwise(table)
            ]
        return table[0]

    return Oracle(jvp)


def agree(actual, expected, accuracy):
    """Assert that an oracle speaks of the same solution."""
    difference = error([actual], [expected])
    assert difference <= accuracy, f"the oracle's solution is off by {difference:.1e}"


def error(actual: list, expected: list) -> float:
    """The largest relative error ‖actual − expected‖/‖expected‖ over the leaves, each stacked over the list."""
    stacked = (jax.tree.map(lambda *x: np.stack([np.asarray(a) for a in x]), *values) for values in (actual, expected))
    errors = jax.tree.map(lambda a, e: np.linalg.norm(a - e) / np.linalg.norm(e), *stacked)
    return float(max(jax.tree.leaves(errors)))


def inner_products(cotangents, tangents):
    """All ⟨wᵢ, ẋⱼ⟩."""
    return np.array([[_dot(w, tangent) for tangent in tangents] for w in cotangents])


def _dot(x, y):
    return sum(float(np.vdot(a, b)) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def _stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _unstacked(tree):
    return [jax.tree.map(lambda x: np.asarray(x[i]), tree) for i in range(DIRECTIONS)]  # noqa: B023


def _jvp(case: Case):
    return lambda hparams, d: jax.jvp(case.implicit, (hparams,), (d,))[1]


def _vjp(case: Case):
    return lambda hparams, w: jax.vjp(case.implicit, hparams)[1](w)[0]


def _root_jvp(case: Case):
    def push(hparams, d):
        tangents = (d, jax.tree.map(jnp.zeros_like, case.data))
        moved = bl.root_jvp(case.bound, case.solution, (hparams, case.data), tangents)
        return jax.jvp(case.measure, (case.solution, hparams), (moved, d))[1]

    return push


def _root_vjp(case: Case):
    def pull(hparams, w):
        w_params, direct = jax.vjp(case.measure, case.solution, hparams)[1](w)
        found, _ = bl.root_vjp(case.bound, case.solution, (hparams, case.data), w_params)
        return jax.tree.map(jnp.add, found, direct)

    return pull


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(InnerSolver):
    """An inner solver that starts at the solution and has converged."""

    solution: Any

    def check(self, problem):
        """Serve every problem."""

    def init(self, at, params):
        progress = dataclasses.replace(SolveProgress.start(float), status=jnp.int32(bl.Status.CONVERGED))
        return InnerSolution(self.solution, progress)

    def step(self, at, state):
        return state


def _hypergradient(case: Case):
    """Of ⟨w, measured⟩ + Σ sin θ, less the derivative of the second term."""

    def pull(hparams, w):
        def outer_loss(params, hparams, data):
            measured = case.measure(params, hparams)
            linear = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(measured), strict=True))
            return linear + sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(hparams))

        problem = dataclasses.replace(case.problem, outer_loss=outer_loss)
        solver = Given(solution=case.solution)
        found = bl.hypergrad.Implicit().run(problem, solver, case.solution, hparams, case.data)
        return jax.tree.map(lambda g, x: g - jnp.cos(x), found.grad, hparams)

    return pull


def _jacobian(transform):
    return lambda case: transform(case.implicit)


def _jitted(function):
    return lambda case: jax.jit(function(case))


FORWARD = {"jvp": _jvp, "jvp, jit": _jitted(_jvp), "root_jvp, jit": _jitted(_root_jvp)}
REVERSE = {
    "vjp": _vjp,
    "vjp, jit": _jitted(_vjp),
    "root_vjp, jit": _jitted(_root_vjp),
    "hypergradient, jit": _jitted(_hypergradient),
}
JACOBIAN = {"jacfwd, jit": _jitted(_jacobian(jax.jacfwd)), "jacrev, jit": _jitted(_jacobian(jax.jacrev))}
JIT = ("jvp, jit", "vjp, jit")
ALL = (*FORWARD, *REVERSE, *JACOBIAN)


class Derivative:
    """What bilevel finds in one mode, and its relative error against an oracle."""

    def __init__(self, case: Case, mode: str):
        self.mode, self.directions, self.cotangents = mode, case.directions(), case.cotangents()
        if mode in FORWARD:
            found = jax.vmap(FORWARD[mode](case), (None, 0))(case.hparams, _stacked(self.directions))
            self.found = _unstacked(found)
        elif mode in REVERSE:
            found = jax.vmap(REVERSE[mode](case), (None, 0))(case.hparams, _stacked(self.cotangents))
            self.found = _unstacked(found)
        else:
            self.found = [JACOBIAN[mode](case)(case.hparams)]

    def error(self, oracle: Oracle) -> float:
        """Of tangents, Jacobians, and gradients; of these by their products with the directions if need be."""
        if self.mode in FORWARD:
            return error(self.found, oracle.tangents(self.directions))
        if self.mode in JACOBIAN:
            return error(self.found, [oracle.jacobian()])
        if oracle.vjp is not None:
            return error(self.found, [oracle.vjp(w) for w in self.cotangents])
        expected = inner_products(self.cotangents, oracle.tangents(self.directions))
        return error([inner_products(self.found, self.directions)], [expected])


class Check(NamedTuple):
    """An oracle in words, the bound on every relative error, and how the oracle is built for a case.

    `whole`: the oracle has whole Jacobians.
    """

    oracle: str
    bound: float
    make: Callable[[Case], Oracle]
    whole: bool = False


def closed_form(function, name="closed form"):
    """A check against a closed form of the measured quantity as a function of hparams."""
    return Check(name, CLOSED, lambda case: closed(case, function), whole=True)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A condition at one point, checked in some modes by some oracles: a row for each pair.

    Args:
      condition: a class of `bilevel.optimality`.
      problem: in words.
      case: builds the problem at a point.
      checks: the oracles.
      modes: names of modes.
    """

    condition: type
    problem: str
    case: Callable[[], Case]
    checks: tuple[Check, ...]
    modes: tuple[str, ...] = JIT

    @property
    def name(self) -> str:
        """Unique among the entries."""
        return f"{self.condition.__name__}: {self.problem}"

    @property
    def rows(self) -> list[tuple[str, str]]:
        """(oracle, mode) of each row."""
        return [(c.oracle, mode) for c in self.checks for mode in self.modes if c.whole or mode not in JACOBIAN]

    def compute(self) -> Iterator[tuple[str, str, float, float]]:
        """(oracle, mode, bound, relative error) of each row."""
        case = self.case()
        assert isinstance(bl.optimality.of(case.problem), self.condition)
        assert sum(x.size for x in jax.tree.leaves(case.solution)) >= 20
        assert _residual(case) <= 1e-9
        derivatives = {mode: Derivative(case, mode) for mode in self.modes}
        for check in self.checks:
            oracle = check.make(case)
            for mode, derivative in derivatives.items():
                if (check.oracle, mode) in self.rows:
                    yield check.oracle, mode, check.bound, derivative.error(oracle)


def _residual(case: Case) -> float:
    """The largest entry of F."""
    value = jax.jit(case.bound)(case.solution, case.hparams, case.data)
    return float(max(np.abs(x).max() for x in jax.tree.leaves(value)))
