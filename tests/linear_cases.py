"""The linear solvers, systems to solve, and the status with which each method ends on each system."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import Status, linear
from bilevel.linear import CG, GMRES, Damped, Direct, Refined, Wrapped

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


METHODS = [CG(), linear.MINRES(), linear.BiCGStab(), linear.LSMR(), linear.NormalCG(), linear.Neumann()]
ITERATIVE = [*METHODS, GMRES(restart=2, rtol=1e-4)]
SOLVERS = [
    *METHODS,
    Direct(),
    GMRES(),
    linear.Nystrom(max_steps=5),
    Damped(ridge=1e-13),
    Refined(),
    linear.Auto(),
    Wrapped(function=dense, rtol=None),
]
SYMMETRIC_ONLY = (CG, linear.Nystrom, linear.MINRES)


def title(value):
    if not isinstance(value, linear.LinearSolver):
        return str(value)
    changed = {k: v for k, v in vars(value).items() if v != getattr(type(value), k, None) and k != "function"}
    return "-".join([type(value).__name__, *(f"{k}={v}" for k, v in changed.items())])


def structures(solver):
    """The declarations of structure that make a difference to a solver."""
    return STRUCTURES if isinstance(solver, Direct | linear.Auto | Damped | Refined) else ["general"]


each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=title)


def others(*kinds):
    return [solver for solver in SOLVERS if not isinstance(solver, kinds)]


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
HONEST = {"spd": STRUCTURES, "nonsymmetric": ["general"]}  # the others are symmetric
# The status on each of these problems, in their order, where the declared structure holds. None: the method is not for it,
# and any status but a wrong `CONVERGED` will do.
STATUSES = {
    CG(): (OK, NEGATIVE, None, OK, None, OK),
    GMRES(): (OK, OK, OK, OK, STUCK, OK),
    linear.MINRES(): (OK, OK, None, OK, STUCK, OK),
    linear.BiCGStab(): (OK, OK, OK, OK, None, OK),
    linear.LSMR(): (OK, OK, OK, OK, STUCK, OK),
    linear.NormalCG(): (OK, OK, OK, OK, STUCK, OK),
    linear.Neumann(): (OK, BROKEN, OK, LIMIT, LIMIT, LIMIT),
    linear.Nystrom(max_steps=5): (OK, NEGATIVE, None, OK, STUCK, OK),
    Direct(): (OK, OK, OK, None, None, OK),
    Direct(method="qr"): (OK, OK, OK, None, None, OK),
    Direct(method="svd"): (OK, OK, OK, OK, STUCK, OK),
    Refined(): (OK, OK, OK, None, None, OK),
    Refined(solver=linear.MINRES()): (OK, OK, None, OK, STUCK, None),
    linear.Auto(): (OK, OK, OK, None, None, OK),
    Damped(ridge=1e-13): (OK, OK, OK, None, None, None),
    Wrapped(function=dense, rtol=None): (OK, OK, OK, None, None, None),
    Wrapped(function=least_squares): (OK, OK, OK, OK, None, None),
    Wrapped(function=lambda matvec, b: b / 2): (STUCK, STUCK, STUCK, None, None, None),
    CG(rtol=1e-3): (OK, NEGATIVE, None, OK, None, None),
    CG(max_steps=1): (LIMIT, None, None, None, None, None),
    GMRES(rtol=1e-4, restart=2): (OK, None, OK, None, None, None),
}


def solve(solver, structure, a, b, init=None, tolerance=None, singular=False):
    structure = structure if structure in structures(solver) else "general"
    return solve_jitted(solver, structure, singular, a, b, init, tolerance)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def solve_jitted(solver, structure, singular, a, b, init, tolerance):
    return solver.solve(linear.Operator(lambda v: a @ v, structure, singular), b, init, tolerance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve_lanes(solver, structure, a, b):
    return jax.vmap(lambda a, b: solver.solve(linear.Operator(lambda v: a @ v, structure), b))(a, b)


def relative_error(x, expected):
    return np.linalg.norm(np.asarray(x) - expected) / np.linalg.norm(expected)


def null_vector():
    return np.ones(N) / np.sqrt(N)
