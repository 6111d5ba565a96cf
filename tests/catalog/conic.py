"""Cone programs made from a strictly complementary pair of slack and dual."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.operators.cones import Cones, vectorize
from bilevel.optimality import Conic
from bilevel.statements import ConeProgram
from catalog.core import DIFFERENCES, JIT, NONSYMMETRIC_CONES, Case, Check, Entry, Oracle, agree, differences
from catalog.solvers import SCS, cvxpy_minimize

# A pair for each cone: s in K, y in K*, ⟨s, y⟩ = 0, neither at a kink; and the dimensions between which the number of
# unknowns must lie for both solutions to be unique.


def zero_pair(rng, size):
    return np.zeros(size), rng.normal(size=size), size, size


def nonnegative_pair(rng, size):
    active = np.arange(size) % 2 == 0
    values = rng.uniform(0.5, 1.5, size)
    return np.where(active, 0, values), np.where(active, values, 0), active.sum(), active.sum()


def second_order_pair(rng, size):
    u = rng.normal(size=size - 1)
    norm, scale = np.linalg.norm(u), rng.uniform(0.5, 1.5)
    return np.r_[norm, u], scale * np.r_[norm, -u], 1, size - 1


def semidefinite_pair(rng, n):
    basis, rank = np.linalg.qr(rng.normal(size=(n, n)))[0], n // 2
    values = rng.uniform(0.5, 1.5, n)
    slack = basis * np.where(np.arange(n) < rank, 0, values) @ basis.T
    dual = basis * np.where(np.arange(n) < rank, values, 0) @ basis.T
    low = rank * (rank + 1) // 2
    return (
        np.asarray(vectorize(jnp.asarray(slack))),
        np.asarray(vectorize(jnp.asarray(dual))),
        low,
        low + rank * (n - rank),
    )


def exponential_pair(rng, size):
    """s = (a, b, b exp(a/b)); y is along the gradient of c − b exp(a/b) there."""
    a, b, scale = rng.normal() / 2, rng.uniform(0.7, 1.3), rng.uniform(0.5, 1.5)
    growth = np.exp(a / b)
    return np.array([a, b, b * growth]), scale * np.array([-growth, -growth * (1 - a / b), 1.0]), 1, 2


def pairs(cones, rng):
    yield zero_pair(rng, cones.zero)
    yield nonnegative_pair(rng, cones.nonnegative)
    yield from (second_order_pair(rng, size) for size in cones.second_order)
    yield from (semidefinite_pair(rng, n) for n in cones.semidefinite)
    yield from (exponential_pair(rng, 3) for _ in range(cones.exponential))


# The program.


def program(cones):
    """c, E, d and the solution (z, y, s)."""
    rng = np.random.default_rng(41)
    slack, dual, low, high = zip(*pairs(cones, rng), strict=True)
    slack, dual = np.concatenate(slack), np.concatenate(dual)
    n = (sum(low) + sum(high)) // 2
    e, z = rng.normal(size=(slack.size, n)) / np.sqrt(n), rng.normal(size=n)
    hparams = {"c": -e.T @ dual, "E": e, "d": e @ z + slack}
    return jax.tree.map(jnp.asarray, hparams), tuple(jnp.asarray(x) for x in (z, dual, slack))


def case_of(cones):
    hparams, solution = program(cones)

    def measure(params, hparams):
        return Conic.recover(params, ConeProgram(**hparams, cones=cones))._asdict()

    problem = bl.Problem(
        inner=bl.Program(lambda hparams, data: ConeProgram(**hparams, cones=cones), kind="cone"), optimality=Conic()
    )
    return Case(problem, hparams, Conic.embed(*solution), measure=measure)


def as_measured(primal, dual, slack):
    return {"primal": np.asarray(primal), "dual": np.asarray(dual), "slack": np.asarray(slack)}


# Oracles.


def by_diffcp(cones):
    names = {
        "z": cones.zero, "l": cones.nonnegative, "q": list(cones.second_order), "s": list(cones.semidefinite),
        "ep": cones.exponential,
    }  # fmt: skip

    def make(case):
        import diffcp
        from scipy.sparse import csc_matrix

        p = jax.tree.map(np.asarray, case.hparams)
        *found, derivative, _ = diffcp.solve_and_derivative(
            csc_matrix(p["E"]), p["d"], p["c"], {k: v for k, v in names.items() if v}, mode="dense",
            solve_method="SCS", eps_abs=1e-13, eps_rel=1e-13, max_iters=100_000,
        )  # fmt: skip
        agree(as_measured(*found), case.value, 1e-10)

        def tangent(d):
            return as_measured(*derivative(csc_matrix(d["E"]), np.asarray(d["d"]), np.asarray(d["c"])))

        return Oracle(tangent)

    return make


def cvxpy_slack(cones):
    """A variable for the slack of the curved cones, and the constraints that put it there."""
    import cvxpy as cp

    at, constraints = 0, []
    slack = cp.Variable(cones.size - cones.zero - cones.nonnegative)
    for size in cones.second_order:
        constraints.append(cp.SOC(slack[at], slack[at + 1 : at + size]))
        at += size
    for n in cones.semidefinite:
        matrix, columns = cp.Variable((n, n), PSD=True), np.triu_indices(n)
        scale = np.where(columns[0] == columns[1], 1, np.sqrt(2))
        constraints.append(slack[at : at + scale.size] == cp.multiply(scale, matrix[columns]))
        at += scale.size
    for _ in range(cones.exponential):
        constraints.append(cp.ExpCone(slack[at], slack[at + 1], slack[at + 2]))
        at += 3
    return slack, constraints


def cvxpy_program(cones):
    """A function from hparams to the solution; multipliers of rows in their order."""
    import cvxpy as cp

    def solve(hparams):
        c, e, d = (np.asarray(hparams[key]) for key in ("c", "E", "d"))
        z, bends = cp.Variable(c.size), cones.zero + cones.nonnegative
        slack, constraints = cvxpy_slack(cones) if cones.size > bends else (None, [])
        zero, below, bent = np.split(np.arange(cones.size), [cones.zero, bends])
        rows = [e[zero] @ z == d[zero]] if zero.size else []
        rows += [e[below] @ z <= d[below]] if below.size else []
        rows += [e[bent] @ z + slack == d[bent]] if bent.size else []
        cvxpy_minimize(c @ z, [*rows, *constraints], SCS)
        dual = np.concatenate([np.atleast_1d(row.dual_value) for row in rows])
        found = np.r_[d[:bends] - e[:bends] @ z.value, slack.value if bent.size else []]
        return as_measured(z.value, dual, found)

    return solve


def by_cvxpy(cones):
    rows = slice(cones.zero, cones.zero + cones.nonnegative)

    def active(value):
        return np.asarray(value["dual"])[rows] > np.asarray(value["slack"])[rows]

    return lambda case: differences(case, cvxpy_program(cones), 0.003, active, accuracy=1e-9)


def _entry(name, cones, bound, modes=JIT):
    checks = (Check("diffcp", bound, by_diffcp(cones)), Check("differences of CVXPY with SCS", bound, by_cvxpy(cones)))
    return Entry(Conic, name, functools.partial(case_of, cones), checks, modes)


ENTRIES = [
    _entry("zero and non-negative cones", Cones(zero=8, nonnegative=28), DIFFERENCES),
    _entry("second-order cones", Cones(second_order=(10, 10, 10, 10)), DIFFERENCES),
    _entry("semidefinite cones", Cones(semidefinite=(6, 6)), NONSYMMETRIC_CONES),
    _entry("exponential cones", Cones(zero=2, nonnegative=2, exponential=12), NONSYMMETRIC_CONES),
    _entry(
        "product of all cones",
        Cones(zero=4, nonnegative=8, second_order=(8,), semidefinite=(5,), exponential=4),
        NONSYMMETRIC_CONES,
        (*JIT, "root_vjp, jit", "hypergradient, jit"),
    ),
]
