"""The linear solvers, and systems to solve."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import Status
from bilevel.linear import (
    CG,
    GMRES,
    LSMR,
    MINRES,
    Auto,
    BiCGStab,
    Damped,
    Direct,
    LinearSolver,
    Neumann,
    NormalCG,
    Nystrom,
    Operator,
    Refined,
    Wrapped,
)

OK, LIMIT, STUCK = Status.CONVERGED, Status.MAX_STEPS, Status.STAGNATED
NEGATIVE, BROKEN = Status.NEGATIVE_CURVATURE, Status.BREAKDOWN
N = 12
STRUCTURES = ["general", "symmetric", "positive_definite"]


def dense(matvec, b):
    flat, unravel = ravel_pytree(b)
    columns = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0], out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
    return unravel(jnp.linalg.solve(columns, flat))


def least_squares(matvec, b):
    columns = jax.vmap(matvec, out_axes=1)(jnp.eye(b.size, dtype=b.dtype))
    return jnp.linalg.pinv(columns) @ b


SOLVERS = [
    Direct(),
    CG(),
    GMRES(),
    MINRES(),
    BiCGStab(),
    LSMR(),
    NormalCG(),
    Neumann(),
    Nystrom(max_steps=5),
    Damped(ridge=1e-13),
    Refined(),
    Auto(),
    Wrapped(function=dense, rtol=None),
]
MORE = [CG(rtol=1e-3), GMRES(rtol=1e-4, restart=2), Wrapped(function=least_squares)]
KRYLOV = [CG(), GMRES(restart=2, rtol=1e-4), MINRES(), BiCGStab(), LSMR(), NormalCG()]
ITERATIVE = [*KRYLOV, Neumann()]
POSITIVE_DEFINITE_ONLY = (CG, Nystrom)
SYMMETRIC_ONLY = (*POSITIVE_DEFINITE_ONLY, MINRES)
RIGHT_HALF_PLANE_ONLY = (*POSITIVE_DEFINITE_ONLY, Neumann)


def title(value):
    if not isinstance(value, LinearSolver):
        return str(value)
    changed = {k: v for k, v in vars(value).items() if v != getattr(type(value), k, None) and k != "function"}
    return "-".join([type(value).__name__, *(f"{k}={v}" for k, v in changed.items())])


def looks_at_structure(solver):
    return isinstance(solver, Direct | Auto | Damped | Refined)


def settings(solvers):
    return [(s, structure) for s in solvers for structure in (STRUCTURES if looks_at_structure(s) else ["general"])]


each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=title)


def others(*kinds):
    return [solver for solver in SOLVERS if not isinstance(solver, kinds)]


def posed(solver, a):
    """The matrix of the system that is solved."""
    return a + solver.ridge * np.eye(len(a)) if isinstance(solver, Damped) else a


def orthogonal():
    return np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]


def with_spectrum(values):
    q = orthogonal()
    a = q @ np.diag(values) @ q.T
    return (a + a.T) / 2


def path_laplacian():
    a = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1)
    a[0, 0] = a[-1, -1] = 1
    return a


noise = np.random.default_rng(1)
RHS = noise.normal(size=N)
SPD = with_spectrum(np.linspace(1, 10, N))
INDEFINITE = with_spectrum(np.r_[-np.linspace(1, 3, N // 2), np.linspace(1, 5, N - N // 2)])
NONSYMMETRIC = 6 * np.eye(N) + noise.normal(size=(N, N))
SINGULAR = path_laplacian()
BADLY_SCALED = np.diag(np.logspace(-3, 0, N)) @ with_spectrum(np.linspace(1, 2, N)) @ np.diag(np.logspace(-3, 0, N))
PROBLEMS = {
    "spd": (SPD, RHS),
    "indefinite": (INDEFINITE, RHS),
    "nonsymmetric": (NONSYMMETRIC, RHS),
    "singular consistent": (SINGULAR, SINGULAR @ np.arange(1.0, N + 1) ** 2),
    "singular inconsistent": (SINGULAR, np.ones(N) + RHS - RHS.mean()),
    "badly scaled": (BADLY_SCALED, RHS),
}


def solve(solver, structure, a, b, init=None, tolerance=None):
    init = jnp.zeros_like(b) if init is None else init
    return solve_jitted(solver, structure if looks_at_structure(solver) else "general", a, b, init, tolerance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve_jitted(solver, structure, a, b, init, tolerance):
    return solver.solve(Operator(lambda v: a @ v, structure), b, init, tolerance)


def solve_lanes(solver, structure, a, b):
    return solve_lanes_jitted(solver, structure if looks_at_structure(solver) else "general", a, b)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve_lanes_jitted(solver, structure, a, b):
    return jax.vmap(lambda a, b: solver.solve(Operator(lambda v: a @ v, structure), b))(a, b)


def status_of(solution):
    return Status(int(solution.status))


def relative_error(x, expected):
    return np.linalg.norm(np.asarray(x) - expected) / np.linalg.norm(expected)


def allowed(solver, b):
    rtol = np.finfo(b.dtype).eps ** (2 / 3) if solver.rtol is None else solver.rtol
    return rtol * np.linalg.norm(b)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(solver, structure, singular, a, b, init=None):
    return solver.solve(Operator(lambda v: a @ v, structure, singular), b, init)


def null_vector():
    return np.ones(N) / np.sqrt(N)
