"""Constraints with multipliers: KKT and QuadraticProgram."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.optimality import KKT, KKTSolution, QuadraticProgram
from bilevel.statements import QP
from catalog.core import CLOSED, DIFFERENCES, JIT, Case, Check, Entry, Oracle, closed_form, differences
from catalog.solvers import Root, cvxpy_minimize, equality_qp, half_square

N, EQUALITIES, INEQUALITIES, ACTIVE = 24, 4, 12, 5
RNG = np.random.default_rng(31)
FACTOR = RNG.normal(size=(N, N))
CVXPY = "differences of CVXPY with Clarabel"


def quadratic_hparams(equalities=EQUALITIES, inequalities=INEQUALITIES):
    """Q, c, E, d, M and h of a program whose first inequalities are active, with multipliers and slacks of size one."""
    rng = np.random.default_rng(32)
    q, z = FACTOR @ FACTOR.T / N + np.eye(N), rng.normal(size=N)
    e, m = rng.normal(size=(EQUALITIES, N))[:equalities], rng.normal(size=(INEQUALITIES, N))[:inequalities]
    active = np.arange(inequalities) < ACTIVE
    nu, lam = rng.normal(size=EQUALITIES)[:equalities], np.where(active, rng.uniform(0.5, 1.5, inequalities), 0)
    slack = np.where(active, 0, rng.uniform(0.5, 1.5, inequalities))
    values = {"Q": q, "c": -(q @ z + e.T @ nu + m.T @ lam), "E": e, "d": e @ z, "M": m, "h": m @ z + slack}
    return {key: jnp.asarray(value) for key, value in values.items() if value.size}


def quadratic_solution(p):
    """The equality-constrained program of the active constraints."""
    rows = [p[key] for key in ("E", "M") if key in p]
    sides = [p[key] for key in ("d", "h") if key in p]
    equalities = p["d"].size if "d" in p else 0
    if "M" in p:
        rows[-1], sides[-1] = rows[-1][:ACTIVE], sides[-1][:ACTIVE]
    e = jnp.concatenate(rows) if rows else jnp.zeros((0, N))
    d = jnp.concatenate(sides) if sides else jnp.zeros(0)
    z, dual = equality_qp(p["Q"], p["c"], e, d)
    nu = dual[:equalities] if "d" in p else None
    lam = jnp.zeros(INEQUALITIES).at[:ACTIVE].set(dual[equalities:]) if "M" in p else None
    return KKTSolution(z, nu, lam)


def cvxpy_quadratic(p):
    import cvxpy as cp

    p, z = jax.tree.map(np.asarray, p), cp.Variable(N)
    equality = p["E"] @ z == p["d"] if "E" in p else None
    inequality = p["M"] @ z <= p["h"] if "M" in p else None
    constraints = [c for c in (equality, inequality) if c is not None]
    cvxpy_minimize(half_square(p["Q"], z) + p["c"] @ z, constraints)
    return KKTSolution(z.value, *(None if c is None else c.dual_value for c in (equality, inequality)))


def active_multipliers(solution):
    return () if solution.dual_ineq is None else np.asarray(solution.dual_ineq) > 1e-6


def dense_kkt(p, solution, d):
    """The tangent of a solution along directions d in Q, c, E, d, M and h, by NumPy."""
    z, nu, lam = (np.asarray(x) for x in solution)
    p, d = jax.tree.map(np.asarray, p), jax.tree.map(np.asarray, d)
    q, e, m, eq, ineq = p["Q"], p["E"], p["M"], nu.size, lam.size
    matrix = np.block(
        [
            [(q + q.T) / 2, e.T, m.T],
            [e, np.zeros((eq, eq + ineq))],
            [lam[:, None] * m, np.zeros((ineq, eq)), np.diag(m @ z - p["h"])],
        ]
    )
    top = (d["Q"] + d["Q"].T) / 2 @ z + d["c"] + d["E"].T @ nu + d["M"].T @ lam
    side = np.concatenate([top, d["E"] @ z - d["d"], lam * (d["M"] @ z - d["h"])])
    return KKTSolution(*np.split(np.linalg.solve(matrix, -side), [N, N + eq]))


# KKT for a quadratic with linear constraints.


def linear_constraint(matrix, side):
    return lambda z, p, data: p[matrix] @ z - p[side]


def quadratic_kkt(equalities, inequalities):
    statement = bl.Minimization(
        loss=lambda z, p, data: jnp.vdot(z, p["Q"] @ z) / 2 + jnp.vdot(p["c"], z),
        equality=linear_constraint("E", "d") if equalities else None,
        inequality=linear_constraint("M", "h") if inequalities else None,
    )
    problem = bl.Problem(inner=statement, optimality=KKT())
    hparams = quadratic_hparams(equalities, inequalities)
    return Case(problem, hparams, jax.jit(quadratic_solution)(hparams))


def by_cvxpy_kkt(case):
    return differences(case, cvxpy_quadratic, 0.005, pattern=active_multipliers)


# QuadraticProgram, a derivative at a time: the other arguments are data.


def program_of(p):
    return QP(*(p[key] for key in ("Q", "c", "E", "d", "M", "h")))


def matvecs_of(p):
    """The same with functions in place of matrices."""

    def times(matrix):
        return jax.tree_util.Partial(jnp.matmul, matrix)

    return QP(times(p["Q"]), p["c"], times(p["E"]), p["d"], times(p["M"]), p["h"])


def quadratic_program(argument, program=program_of):
    """Of one argument, or of all where it is None."""
    p = quadratic_hparams()
    moving = p if argument is None else {argument: p[argument]}
    fixed = {key: value for key, value in p.items() if key not in moving}
    problem = bl.Problem(inner=bl.Program(lambda hparams, data: program(hparams | data)), optimality=QuadraticProgram())
    return Case(problem, moving, jax.jit(quadratic_solution)(p), data=fixed)


def by_dense_kkt(case):
    p = case.hparams | case.data
    nothing = jax.tree.map(np.zeros_like, p)
    return Oracle(lambda d: dense_kkt(p, case.solution, nothing | d))


def by_cvxpy_program(case):
    return differences(case, lambda hparams: cvxpy_quadratic(hparams | case.data), 0.005, pattern=active_multipliers)


# KKT for a nonlinear program.

BENDS = RNG.uniform(0.1, 0.5, size=(INEQUALITIES, N))


def curved_loss(z, p, data):
    quadratic = jnp.sum((FACTOR.T @ z) ** 2) / N + jnp.vdot(z, z)
    return quadratic / 2 + jnp.vdot(p["c"], z) + jnp.sum(jnp.logaddexp(z, -z))


def curved_equality(z, p, data):
    return p["E"] @ z + 0.3 * jnp.sin(z[:EQUALITIES]) - p["d"]


def curved_inequality(z, p, data):
    return p["M"] @ z + BENDS @ z**2 / 2 - p["h"]


def curved_constraints(p):
    """H and the active part of G as one function of z."""

    def stacked(z):
        equalities = curved_equality(z, p, None) if "E" in p else jnp.zeros(0)
        inequalities = curved_inequality(z, p, None)[:ACTIVE] if "M" in p else jnp.zeros(0)
        return jnp.concatenate([equalities, inequalities])

    return stacked


_active_normals = jax.jit(lambda z, p: jax.jacfwd(curved_constraints(p))(z))


def curved_kkt(x, p):
    """The optimality conditions of the active constraints, in one vector (z, ν, active λ)."""
    value, pull = jax.vjp(curved_constraints(p), x[:N])
    return jnp.concatenate([jax.grad(curved_loss)(x[:N], p, None) + pull(x[N:])[0], value])


CURVED_ROOT = Root(curved_kkt)


def curved_hparams(equalities, inequalities):
    """The quadratic program's solution stays optimal: its constraints' sides and the linear term are set to that end."""
    p = quadratic_hparams(equalities, inequalities)
    z, nu, lam = jax.jit(quadratic_solution)(p)
    p = {key: x for key, x in p.items() if key != "Q"} | {"c": jnp.zeros(N)}
    if equalities:
        p = p | {"d": p["d"] + curved_equality(z, p, None)}
    if inequalities:
        p = p | {"h": p["h"] + BENDS @ z**2 / 2}
    dual = jnp.concatenate([jnp.zeros(0) if nu is None else nu, jnp.zeros(0) if lam is None else lam[:ACTIVE]])
    return p | {"c": -jax.jit(curved_kkt)(jnp.concatenate([z, dual]), p)[:N]}


_loss, _slope = jax.jit(lambda z, p: curved_loss(z, p, None)), jax.jit(jax.grad(lambda z, p: curved_loss(z, p, None)))
_constraints = {
    "eq": jax.jit(lambda z, p: curved_equality(z, p, None)),
    "ineq": jax.jit(lambda z, p: -curved_inequality(z, p, None)),
}
_normals = {kind: jax.jit(jax.jacfwd(function)) for kind, function in _constraints.items()}


def slsqp(p, start):
    """The minimum by SciPy's sequential quadratic programming."""
    from scipy.optimize import minimize

    kinds = [kind for kind, key in (("eq", "E"), ("ineq", "M")) if key in p]
    constraints = [{"type": kind, "fun": _constraints[kind], "jac": _normals[kind], "args": (p,)} for kind in kinds]
    found = minimize(
        _loss, start, (p,), jac=_slope, method="SLSQP", constraints=constraints,
        options={"ftol": 1e-8, "maxiter": 500},
    )  # fmt: skip
    assert found.success, found.message
    if "M" in p:
        slack = np.asarray(_constraints["ineq"](found.x, p))
        assert (slack[:ACTIVE] < 1e-4).all(), "an active constraint became inactive"
        assert (slack[ACTIVE:] > 1e-2).all(), "an inactive constraint became active"
    return found.x


def curved_solution(p, start):
    """From SLSQP, with multipliers from its normals, polished."""
    z = slsqp(p, start)
    normals = np.asarray(_active_normals(z, p))
    dual = np.linalg.lstsq(normals.T, -np.asarray(_slope(z, p)))[0]
    x = CURVED_ROOT(np.concatenate([z, dual]), p)
    equalities = EQUALITIES if "E" in p else 0
    lam = np.r_[x[N + equalities :], np.zeros(INEQUALITIES - ACTIVE)] if "M" in p else None
    return jax.tree.map(jnp.asarray, KKTSolution(x[:N], x[N : N + equalities] if equalities else None, lam))


def curved(equalities, inequalities):
    hparams = curved_hparams(equalities, inequalities)
    statement = bl.Minimization(
        loss=curved_loss,
        equality=curved_equality if equalities else None,
        inequality=curved_inequality if inequalities else None,
    )
    problem = bl.Problem(inner=statement, optimality=KKT())
    return Case(problem, hparams, curved_solution(hparams, np.zeros(N)))


def by_slsqp(case):
    start = np.asarray(case.solution.primal)
    return differences(case, lambda p: curved_solution(p, start), 0.005, pattern=active_multipliers, accuracy=1e-12)


def by_active_kkt(case):
    """The implicit function theorem for the active constraints, dense."""
    p, solution = case.hparams, case.solution
    parts = KKTSolution(
        solution.primal, solution.dual_eq, None if solution.dual_ineq is None else solution.dual_ineq[:ACTIVE]
    )
    x, unravel = ravel_pytree(parts)
    matrix = CURVED_ROOT.jacobian(x, p)
    push = jax.jit(lambda d: jax.jvp(lambda p: curved_kkt(x, p), (p,), (d,))[1])

    def tangent(d):
        moved = unravel(jnp.asarray(-np.linalg.solve(matrix, push(d))))
        if moved.dual_ineq is None:
            return moved
        return moved._replace(dual_ineq=jnp.zeros(INEQUALITIES).at[:ACTIVE].set(moved.dual_ineq))

    return Oracle(tangent)


SIZES = {
    "without constraints": (0, 0),
    "equalities": (EQUALITIES, 0),
    "inequalities": (0, INEQUALITIES),
    "equalities and inequalities": (EQUALITIES, INEQUALITIES),
}
QUADRATIC = (
    closed_form(quadratic_solution, "closed form on the active constraints"),
    Check(CVXPY, DIFFERENCES, by_cvxpy_kkt),
)
CURVED = (
    Check("dense system of the active constraints", CLOSED, by_active_kkt),
    Check("differences of SciPy's SLSQP, polished by Newton steps", DIFFERENCES, by_slsqp),
)
PROGRAM = (Check("dense KKT system in NumPy", CLOSED, by_dense_kkt), Check(CVXPY, DIFFERENCES, by_cvxpy_program))
ENTRIES = [
    *(
        Entry(
            KKT,
            f"quadratic, {kind}",
            functools.partial(quadratic_kkt, *sizes),
            QUADRATIC,
            (*JIT, "jacrev, jit", "hypergradient, jit") if all(sizes) else JIT,
        )
        for kind, sizes in SIZES.items()
    ),
    *(
        Entry(KKT, f"nonlinear, {kind}", functools.partial(curved, *sizes), CURVED, JIT)
        for kind, sizes in SIZES.items()
    ),
    *(
        Entry(
            QuadraticProgram,
            f"quadratic program, with respect to {name}",
            functools.partial(quadratic_program, name),
            PROGRAM,
        )
        for name in ("Q", "c", "E", "d", "M", "h")
    ),
    Entry(
        QuadraticProgram,
        "quadratic program, with respect to all",
        functools.partial(quadratic_program, None),
        PROGRAM,
        (*JIT, "root_jvp, jit", "root_vjp, jit"),
    ),
    Entry(
        QuadraticProgram,
        "quadratic program stated by functions, with respect to all",
        functools.partial(quadratic_program, None, matvecs_of),
        PROGRAM,
    ),
]
