"""Solvers of quadratic programs: `EqualityQP` and `OSQP`, against Clarabel and closed forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import differences, status_of

import bilevel as bl
from bilevel import Status, inner
from bilevel.optimality import KKTSolution
from bilevel.statements import QP, Factored

pytestmark = pytest.mark.slice(8)

PROGRAM = bl.Problem(inner=bl.Program(lambda hparams, data: data))
OSQP = inner.OSQP(rtol=1e-9)
PLAIN = inner.OSQP(rtol=1e-7, polish=False, max_steps=250)


def random_program(n=12, q=3, r=24, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    root, inside = rng.normal(size=(rank or n, n)), rng.normal(size=n)
    equal, below = rng.normal(size=(q, n)), rng.normal(size=(r, n))
    return QP(
        root.T @ root / n,
        rng.normal(size=n),
        *((equal, equal @ inside) if q else (None, None)),
        *((below, below @ inside + rng.uniform(0, 1, size=r)) if r else (None, None)),
    )


def boxed(program):
    """−0.2 ≤ z ≤ 0.3, and equalities that go with it."""
    rows = np.vstack([np.eye(12), -np.eye(12)])
    return program._replace(d=np.zeros(3), M=rows, h=np.append(np.full(12, 0.3), np.full(12, 0.2)))


def simplex(program):
    return program._replace(E=np.ones((1, 12)), d=np.ones(1), M=-np.eye(12), h=np.zeros(12))


def redundant(program):
    """The third equality is the sum of the first two; every inequality stands twice."""
    e, d, m, h = (np.array(part) for part in program[2:])
    e[2], d[2], m[12:], h[12:] = e[0] + e[1], d[0] + d[1], m[:12], h[:12]
    return program._replace(E=e, d=d, M=m, h=h)


def badly_scaled(program):
    rng = np.random.default_rng(0)
    columns, rows = np.diag(10.0 ** rng.uniform(-3, 3, 12)), np.diag(10.0 ** rng.uniform(-3, 3, 24))
    q, c, e, d, m, h = program
    return QP(1e4 * columns @ q @ columns, 1e4 * columns @ c, e @ columns, d, rows @ m @ columns, rows @ h)


def contradictory(program):
    """z₀ ≤ 1 and z₀ ≥ 2."""
    rows, h = np.array(program.M), np.array(program.h)
    rows[-2:], h[-2:] = 0, (1, -2)
    rows[-2:, 0] = 1, -1
    return program._replace(M=rows, h=h)


def unbounded(program):
    """The loss falls along z₀, which nothing bounds from above."""
    hessian, slope, e, m = (np.array(part) for part in (program.Q, program.c, program.E, program.M))
    hessian[0], hessian[:, 0], e[:, 0], slope[0], m[:, 0] = 0, 0, 0, -1, -np.abs(m[:, 0])
    return program._replace(Q=hessian, c=slope, E=e, M=m)


CASES = {
    "random": random_program(),
    "low rank": random_program(rank=5, seed=1),
    "box": boxed(random_program(seed=5)),
    "redundant": redundant(random_program(seed=7)),
    "badly scaled": badly_scaled(random_program(seed=8)),
    "linear": boxed(random_program(seed=9))._replace(Q=np.zeros((12, 12))),
    "inequalities": random_program(q=0, seed=2),
    "equalities": random_program(r=0, seed=3),
    "unconstrained": random_program(q=0, r=0, seed=4),
    "simplex": simplex(random_program(seed=6)),
}


def oracle(program):
    """(z, ν, λ) by Clarabel."""
    import cvxpy as cp

    z = cp.Variable(len(program.c))
    rows = [program.E @ z == program.d] if program.E is not None else []
    rows += [program.M @ z <= program.h] if program.M is not None else []
    cost = cp.quad_form(z, cp.psd_wrap(program.Q)) / 2 + program.c @ z
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11)
    cp.Problem(cp.Minimize(cost), rows).solve(solver=cp.CLARABEL, **tight)
    return z.value, *(row.dual_value for row in rows)


def arrays(program, dtype="float64"):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), program)


def start(program):
    return jax.tree.map(jnp.zeros_like, KKTSolution(program.c, program.d, program.h))


@functools.cache
def compiled(solver):
    return jax.jit(lambda p, d: solver.solve(PROGRAM, p, None, d))


def solve(solver, program, at=None):
    return compiled(solver)(start(program) if at is None else at, program)


@pytest.mark.parametrize("name", CASES)
def test_osqp_reaches_the_reference(strict, name):
    found = solve(OSQP, arrays(CASES[name]))
    assert status_of(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-9
    z, *duals = oracle(CASES[name])
    np.testing.assert_allclose(found.params.primal, z, atol=1e-6 * np.abs(z).max())
    if name in ("random", "inequalities", "box", "simplex", "badly scaled"):  # where the multipliers are unique
        for dual, expected in zip(jax.tree.leaves(found.params[1:]), duals, strict=True):
            np.testing.assert_allclose(dual, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("solver", "atol"), [(PLAIN, 1e-5), (dataclasses.replace(OSQP, max_dense=1), 1e-6)])
def test_osqp_without_polish_and_by_products_alone(x64, solver, atol):
    """Above max_dense nothing is formed: the same answer."""
    found = solve(solver, arrays(CASES["random"]))
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.params.primal, oracle(CASES["random"])[0], atol=atol)
    assert solver.polish or int(found.steps) > int(solve(OSQP, arrays(CASES["random"])).steps)


def test_functions_and_factors_stand_for_matrices(x64):
    """The same program by columns: Q = s·AAᵀ known by its factor, row sums and signs as functions."""
    rng = np.random.default_rng(0)
    factor, c = jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.normal(size=(6, 3)))
    stated = QP(
        Factored(factor, jnp.array(0.5)),
        c,
        jax.tree_util.Partial(lambda z: jnp.sum(z, axis=1)),
        jnp.ones(6),
        jax.tree_util.Partial(jnp.negative),
        jnp.zeros((6, 3)),
    )
    found = solve(OSQP, stated)
    assert status_of(found) is Status.CONVERGED
    assert jax.tree.map(jnp.shape, found.params) == KKTSolution((6, 3), (6,), (6, 3))
    plain = QP(
        np.kron(0.5 * factor @ factor.T, np.eye(3)),
        np.ravel(c),
        np.kron(np.eye(6), np.ones((1, 3))),
        np.ones(6),
        -np.eye(18),
        np.zeros(18),
    )
    np.testing.assert_allclose(np.ravel(found.params.primal), oracle(plain)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["random", "box", "linear", "equalities"])
def test_single_precision_while_double_is_on(x64, name):
    solver = inner.EqualityQP() if name == "equalities" else inner.OSQP()
    with jax.numpy_dtype_promotion("strict"):
        found = solve(solver, arrays(CASES[name], "float32"))
    assert status_of(found) is Status.CONVERGED
    assert {leaf.dtype.name for leaf in jax.tree.leaves((found.params, found.residual))} == {"float32"}
    z = oracle(CASES[name])[0]
    np.testing.assert_allclose(found.params.primal, z, atol=1e-3 * np.abs(z).max())


FAILURES = {
    "inequalities contradict": (OSQP, contradictory(CASES["random"]), Status.BREAKDOWN),
    "equalities contradict": (
        OSQP,
        CASES["redundant"]._replace(d=CASES["redundant"].d + np.eye(3)[2]),
        Status.BREAKDOWN,
    ),
    "unbounded": (OSQP, unbounded(CASES["random"]), Status.BREAKDOWN),
    "not convex": (OSQP, CASES["random"]._replace(Q=CASES["random"].Q - np.eye(12)), Status.NEGATIVE_CURVATURE),
    "step limit": (PLAIN, CASES["linear"], Status.MAX_STEPS),
    "NaN in c": (OSQP, CASES["random"]._replace(c=np.full(12, np.nan)), Status.NON_FINITE),
    "NaN in Q": (OSQP, CASES["random"]._replace(Q=np.full((12, 12), np.nan)), Status.NON_FINITE),
    "saddle": (
        inner.EqualityQP(),
        CASES["equalities"]._replace(Q=CASES["equalities"].Q - np.eye(12)),
        Status.NEGATIVE_CURVATURE,
    ),
    "saddle without equalities": (
        inner.EqualityQP(),
        CASES["unconstrained"]._replace(Q=CASES["unconstrained"].Q - np.eye(12)),
        Status.NEGATIVE_CURVATURE,
    ),
    "NaN": (inner.EqualityQP(), CASES["equalities"]._replace(d=np.full(3, np.nan)), Status.NON_FINITE),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_have_their_own_codes(x64, name):
    solver, program, expected = FAILURES[name]
    assert status_of(solve(solver, arrays(program))) is expected


def test_a_point_that_violates_complementarity_is_no_solution(x64):
    """min ‖z‖²/2 subject to z ≤ 1, answered by z = −1/2 with multipliers 1/2: stationary and feasible."""
    program = arrays(QP(np.eye(2), np.zeros(2), M=np.eye(2), h=np.ones(2)))
    wrong = KKTSolution(np.full(2, -0.5), None, np.full(2, 0.5))
    assert status_of(solve(inner.Python(function=lambda *args: wrong), program)) is Status.NOT_A_SOLUTION


def test_lanes_of_a_batch_end_as_alone(x64):
    """Each with its own ρ and its own active set; one of them has no feasible point."""
    programs = [contradictory(CASES["random"]), *(CASES[name] for name in ("low rank", "badly scaled"))]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(arrays, programs))
    found = jax.jit(jax.vmap(lambda d: OSQP.solve(PROGRAM, start(d), None, d)))(batch)
    assert Status(int(found.status[0])) is Status.BREAKDOWN
    for lane in (1, 2):
        alone = solve(OSQP, arrays(programs[lane]))
        assert int(found.status[lane]) == int(alone.status) == Status.CONVERGED
        assert int(found.steps[lane]) == int(alone.steps)
        z = alone.params.primal
        np.testing.assert_allclose(found.params.primal[lane], z, atol=1e-9 * float(jnp.abs(z).max()))


def test_a_warm_start_takes_fewer_steps(x64):
    """From the multipliers of a program nearby, with the same active constraints; from z alone it takes longer."""
    program = arrays(CASES["random"])
    cold = solve(OSQP, program)
    near = program._replace(c=program.c * 1.001)
    warm = solve(OSQP, near, cold.params)
    assert status_of(warm) is Status.CONVERGED
    assert int(warm.steps) == OSQP.check_every < int(cold.steps)
    assert int(solve(OSQP, near, start(near)._replace(primal=cold.params.primal)).steps) > int(warm.steps)


def hyper(theta, data):
    """Q, c, E, d, M and h all depend on θ."""
    scale, shift = jnp.exp(theta[0]), theta[1]
    return QP(
        data.Q * scale + jnp.eye(12),
        data.c + shift,
        data.E * (1 + shift / 10),
        data.d + theta[2],
        None if data.M is None else data.M * (1 + theta[2] / 10),
        None if data.h is None else data.h + theta[0] / 10,
    )


def outer_loss(params, theta, data):
    return jnp.sum(jnp.sin(params.primal)) + sum(jnp.sum(dual**2) for dual in jax.tree.leaves(params[1:]))


HYPER = bl.Problem(outer_loss=outer_loss, inner=bl.Program(hyper))
THETA = [0.1, 0.2, 0.05]


@pytest.mark.parametrize("name", ["random", "equalities"])
def test_hypergradients_match_differences(x64, name):
    solver = inner.OSQP(rtol=1e-12) if name == "random" else inner.EqualityQP(rtol=1e-12)
    data, theta = arrays(CASES[name]), jnp.asarray(THETA)
    estimate = jax.jit(lambda h: bl.hypergrad.Implicit().run(HYPER, solver, start(data), h, data))
    found = estimate(theta)
    assert int(found.solves["adjoint"].status) == Status.CONVERGED
    np.testing.assert_allclose(found.grad, differences(lambda h: estimate(h).outer_loss, theta), rtol=1e-6)


def test_hypergradient_of_a_projection_is_its_closed_form(x64):
    """min ½‖z − θ‖² subject to z ≤ 1: dz/dθ = 1 where θ < 1, else 0."""
    problem = bl.Problem(
        outer_loss=lambda params, theta, data: jnp.sum(data * params.primal),
        inner=bl.Program(lambda theta, data: QP(jnp.eye(4), -theta, M=jnp.eye(4), h=jnp.ones(4))),
    )
    theta, weight = jnp.array([0.5, 2.0, -1.0, 1.5]), jnp.array([1.0, 2.0, 3.0, 4.0])
    at = KKTSolution(jnp.zeros(4), None, jnp.zeros(4))
    found = jax.jit(lambda h: bl.hypergrad.Implicit().run(problem, OSQP, at, h, weight))(theta)
    np.testing.assert_allclose(found.params.primal, [0.5, 1.0, -1.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(found.params.dual_ineq, [0.0, 1.0, 0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(found.grad, [1.0, 0.0, 3.0, 0.0], atol=1e-12)


# Equalities only


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("equalities", bl.linear.Auto()),
        ("equalities", bl.linear.MINRES(rtol=1e-13)),
        ("unconstrained", bl.linear.Auto()),
    ],
    ids=["equalities", "equalities MINRES", "unconstrained"],
)
def test_equality_qp_matches_the_closed_form(strict, name, linear):
    program = CASES[name]
    found = solve(inner.EqualityQP(rtol=1e-10, linear=linear), arrays(program))
    assert status_of(found) is Status.CONVERGED
    assert int(found.steps) == 1
    q = 0 if program.E is None else 3
    rows = np.zeros((0, 12)) if program.E is None else program.E
    system = np.block([[program.Q, rows.T], [rows, np.zeros((q, q))]])
    expected = np.linalg.solve(system, np.append(-program.c, [] if program.d is None else program.d))
    got = np.concatenate(jax.tree.leaves(found.params))
    np.testing.assert_allclose(got, expected, atol=1e-8 * np.abs(expected).max())


def test_redundant_equalities_need_to_be_told(x64):
    e, d = (np.concatenate([part, part[:2]]) for part in CASES["equalities"][2:4])
    program = arrays(CASES["equalities"]._replace(E=e, d=d))
    found = solve(inner.EqualityQP(rtol=1e-9, singular=True), program)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.params.primal, oracle(CASES["equalities"])[0], atol=1e-7)


def test_unrolled_and_implicit_hypergradients_agree(x64):
    data, theta, solver = arrays(CASES["equalities"]), jnp.asarray(THETA), inner.EqualityQP(rtol=1e-12)

    def grad(estimator):
        at = start(data)
        return jax.jit(lambda h: estimator.run(HYPER, solver, at, h, data).grad)(theta)

    exact = grad(bl.hypergrad.Implicit())
    np.testing.assert_allclose(grad(bl.hypergrad.Unrolled(steps=2)), exact, rtol=1e-9)


def test_refusals_say_what_is_missing_and_who_fits(x64):
    with pytest.raises(ValueError, match=r"inner\.EqualityQP needs .* without inequalities, .* QP\.M: use inner\.OSQP"):
        solve(inner.EqualityQP(), arrays(CASES["random"]))
    smooth = bl.Problem(lambda x, h, d: jnp.sum(x**2))
    for solver in (inner.OSQP(), inner.EqualityQP()):
        with pytest.raises(ValueError, match=r'this one has no bl\.Program of kind "quadratic"'):
            solver.check(smooth)
    program = arrays(CASES["random"])
    with pytest.raises(ValueError, match=r"inner\.OSQP: params must be KKTSolution.*3 equalities and 24 inequalities"):
        solve(OSQP, program, KKTSolution(program.c))
    with pytest.raises(TypeError, match=r"inner\.OSQP: z of a quadratic program is one array"):
        solve(OSQP, program, KKTSolution((program.c, program.c), program.d, program.h))


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"inner\.OSQP: relaxation must lie between 0 and 2, got 2"):
        inner.OSQP(relaxation=2.0)
    for name in ("rho", "sigma", "check_every"):
        with pytest.raises(ValueError, match=rf"inner\.OSQP: {name} must be positive"):
            inner.OSQP(**{name: 0})
