"""The conditions as objects: what they refuse, the forms in which they are solved, and how they compose with the engine."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import Status, linear, optimality
from bilevel.operators.cones import Cones
from bilevel.operators.projection import projection_simplex
from bilevel.operators.prox import prox_group_lasso, prox_lasso
from bilevel.optimality import KKT, KKTSolution, ProximalGradient
from bilevel.statements import QP, ConeProgram

pytestmark = [pytest.mark.slice(12), pytest.mark.usefixtures("x64")]

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(40, 24)), RNG.normal(size=40)
WEIGHTS = RNG.normal(size=24)


def squares(params, hparams, data):
    return jnp.sum((FEATURES @ params - TARGETS) ** 2) / 2


def prox(x, hparams, data, step):
    return prox_lasso(x, jnp.exp(hparams), step)


def lasso_problem(optimality=None, **parts):
    return bl.Problem(inner=bl.Minimization(**{"loss": squares, "prox": prox, **parts}), optimality=optimality)


LINEAR_MODEL = {
    "loss": None,
    "datafit": lambda p, hparams, data: jnp.sum((p - TARGETS) ** 2) / 2,
    "design": lambda hparams, data: jnp.asarray(FEATURES),
    "separable": True,
}


def solved(problem, hparams, start):
    inner = bl.inner.FISTA(rtol=1e-15, max_steps=20_000)
    return jax.jit(lambda hparams: inner.solve(problem, start, hparams, None).params)(hparams)


def weighted(problem, solution):
    """θ ↦ ⟨w, x*(θ)⟩ through the engine."""
    solver = bl.custom_root(optimality.bind(problem))(lambda init, hparams, data: solution)
    return lambda hparams: jnp.vdot(jnp.resize(WEIGHTS, solution.shape), solver(None, hparams, None))


class TestReducedSystems:
    """Every reduced form gives what the general system gives."""

    penalties = np.full(24, np.log(7.0))

    @staticmethod
    @functools.cache
    def reference():
        problem, penalties = lasso_problem(), TestReducedSystems.penalties
        solution = solved(problem, penalties, jnp.zeros(24))
        assert 3 <= int((solution != 0).sum()) <= 8
        return solution, jax.jit(jax.grad(weighted(problem, solution)))(penalties)

    @pytest.mark.parametrize(
        "problem",
        [
            lasso_problem(separable=True),
            lasso_problem(separable=True, optimality=ProximalGradient(support=8)),
            lasso_problem(separable=True, optimality=ProximalGradient(step=1e-4)),
            lasso_problem(separable=True, optimality=optimality.BlockProximalGradient()),
            lasso_problem(
                separable=True,
                optimality=optimality.BlockProximalGradient(),
                block_lipschitz=lambda hparams, data: jnp.sum(jnp.asarray(FEATURES) ** 2, axis=0),
            ),
            lasso_problem(**LINEAR_MODEL),
            lasso_problem(**LINEAR_MODEL, optimality=ProximalGradient(support=8)),
        ],
        ids=["masked", "bounded", "small step", "blocks", "own steps", "linear model", "linear model, bounded"],
    )
    @pytest.mark.parametrize(("jit", "jacobian"), [(False, jax.jacrev), (True, jax.jacfwd)])
    def test_lasso(self, problem, jit, jacobian):
        solution, expected = self.reference()
        derivative = jacobian(weighted(problem, solution))
        found = (jax.jit(derivative) if jit else derivative)(self.penalties)
        assert np.linalg.norm(expected) > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_the_system_is_gathered_where_the_support_is_known(self):
        solution, _ = self.reference()
        bound = optimality.bind(lasso_problem(separable=True))
        eager = bound.system(solution, self.penalties).reduction
        assert jax.eval_shape(eager.restrict, solution).shape == (8,)
        shapes = []

        def traced(solution):
            shapes.append(jax.eval_shape(bound.system(solution, self.penalties).reduction.restrict, solution).shape)
            return 0

        jax.jit(traced)(solution)
        assert shapes == [(24,)]

    def test_a_support_above_its_bound_is_a_breakdown(self):
        solution, _ = self.reference()
        bound = optimality.bind(lasso_problem(separable=True, optimality=ProximalGradient(support=2)))
        found = bound.system(solution, self.penalties).solve_transposed(linear.Auto(), jnp.ones(24))
        assert int(found.status) == Status.BREAKDOWN
        assert np.isnan(found.value).all()

    def test_group_lasso(self):
        def rows(x, hparams, data, step):
            steps = jnp.broadcast_to(step, (6, 1))[:, 0]
            return jax.vmap(lambda row, step: prox_group_lasso(row, jnp.exp(hparams), step))(x, steps)

        def loss(params, hparams, data):
            return squares(params.ravel(), hparams, data)

        general = bl.Problem(inner_loss=loss, prox=rows)
        solution = solved(general, jnp.log(7.0), jnp.zeros((6, 4)))
        assert 1 <= int((solution[:, 0] != 0).sum()) <= 4
        expected = jax.jit(jax.grad(weighted(general, solution)))(jnp.log(7.0))
        for condition in (None, optimality.BlockProximalGradient(step=1e-3)):
            special = dataclasses.replace(general, separable="rows", optimality=condition)
            found = jax.jit(jax.grad(weighted(special, solution)))(jnp.log(7.0))
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def rows_loss(params, hparams, data):
    return squares(params.ravel(), hparams, data) / 10 - jnp.vdot(hparams, params)


ROWS = bl.Problem(
    inner_loss=rows_loss, projection=lambda params, hparams, data: jax.vmap(projection_simplex)(params), polyhedral=True
)


def slack(solution, shift):
    """How far each entry's slope is above the mean of its row."""
    slope = jax.grad(rows_loss)(solution, shift, None)
    return slope - jnp.sum(solution * slope, axis=1, keepdims=True)


def test_mirror_descent_ignores_what_is_nearly_zero():
    shift = RNG.normal(size=(6, 4))
    solution = solved(ROWS, shift, jnp.full((6, 4), 0.25))
    assert int((solution == 0).sum()) >= 3
    expected = jax.jit(jax.grad(weighted(ROWS, solution)))(shift)
    mirror = dataclasses.replace(ROWS, optimality=optimality.MirrorStep())
    slope = jax.jit(lambda at, shift: jax.grad(weighted(mirror, at))(shift))
    for zero in (0.0, 1e-30, 1e-300, 1e-12):
        nearly = jnp.where(solution == 0, zero, solution)
        np.testing.assert_allclose(slope(nearly, shift), expected, atol=1e-9)
    # Some want to grow, but have not yet: a mirror step cannot tell them from zero.
    wanted = shift + jnp.where(solution == 0, 0.1 + slack(solution, shift), 0)
    expected = slope(solution, wanted)
    for small in (1e-17, 1e-300):
        begun = jnp.where(solution == 0, small, solution)
        np.testing.assert_allclose(slope(begun, wanted), expected, atol=1e-9)


def test_the_symmetric_form_of_mirror_descent_is_exact_on_the_support():
    """For every right-hand side there, row sums that are not zero included."""
    shift = np.random.default_rng(5).normal(size=(6, 4))
    solution = solved(ROWS, shift, jnp.full((6, 4), 0.25))
    support = np.flatnonzero(np.asarray(solution) > 0)
    assert 8 <= support.size <= 21
    mirror = dataclasses.replace(ROWS, optimality=optimality.MirrorStep(step=0.3))
    b = np.zeros(24)
    b[support] = RNG.normal(size=support.size)
    dense, found = both_solves(optimality.bind(mirror).system(solution, shift), jnp.asarray(b.reshape(6, 4)))
    inside = dense[np.ix_(support, support)]
    assert np.linalg.norm(inside - inside.T) > 0.1
    for (value, _), matrix in zip(found, (inside, inside.T), strict=True):
        np.testing.assert_allclose(value[support], np.linalg.solve(matrix, b[support]), rtol=1e-8)


def both_solves(system, b):
    """The matrix of a system, and the flat answers and statuses of both solves with b."""
    flat, unravel = ravel_pytree(b)

    @jax.jit
    def run(b):
        product = jax.vmap(lambda v: ravel_pytree(system.operator.matvec(unravel(v)))[0], out_axes=1)
        found = [solve(linear.Direct(), b) for solve in (system.solve, system.solve_transposed)]
        return product(jnp.eye(flat.size)), [(ravel_pytree(each.value)[0], each.status) for each in found]

    return jax.tree.map(np.asarray, run(b))


def test_hessian_of_a_lasso_is_that_of_its_closed_form():
    target = jnp.array([3.0, -0.2, -2.0, 0.5, 0.1])
    problem = bl.Problem(
        inner_loss=lambda x, hparams, data: jnp.sum((x - target) ** 2) / 2 + jnp.sum(x**4) / 4,
        prox=prox,
        separable=True,
    )
    at = jnp.log(0.3)
    solution = solved(problem, at, jnp.zeros(5))
    solver = bl.custom_root(optimality.bind(problem))(lambda init, hparams, data: solution)

    def value(hparams):
        return jnp.sum(solver(None, hparams, None) ** 3)

    def closed(hparams):
        """x + x³ = target − λ sign on the support, by Newton steps."""

        def newton(x, _):
            f = x + x**3 - target + jnp.exp(hparams) * jnp.sign(x)
            return jnp.where(x == 0, 0, x - f / (1 + 3 * x**2)), None

        start = jnp.where(jnp.abs(target) > jnp.exp(hparams), jnp.sign(target), 0.0)
        return jnp.sum(jax.lax.scan(newton, start, length=60)[0] ** 3)

    for derivative in (jax.grad, jax.hessian):
        found, expected = (jax.jit(derivative(function))(at) for function in (value, closed))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_symmetric_form_of_kkt_is_exact_at_any_point():
    """Also where complementarity does not hold, as at an interior point's iterate."""
    problem = bl.Problem(
        inner=bl.Minimization(
            loss=lambda z, hparams, data: jnp.sum(z**4) + jnp.vdot(hparams, z),
            equality=lambda z, hparams, data: jnp.array([jnp.sum(z**2) - 1.0]),
            inequality=lambda z, hparams, data: z[:4] ** 2 - jnp.array([0.5, 0.2, 0.9, 0.1]),
        )
    )
    point = KKTSolution(jnp.asarray(RNG.normal(size=6)), jnp.array([0.7]), jnp.array([0.3, 2.0, 0.01, 0.4]))
    b = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), point)
    dense, found = both_solves(optimality.bind(problem).system(point, jnp.ones(6)), b)
    assert np.linalg.norm(dense - dense.T) > 0.1
    for (value, status), matrix in zip(found, (dense, dense.T), strict=True):
        assert status == Status.CONVERGED
        np.testing.assert_allclose(value, np.linalg.solve(matrix, ravel_pytree(b)[0]), rtol=1e-9)


QUADRATIC = bl.Problem(inner=bl.Program(lambda hparams, data: QP(*hparams)), outer_loss=lambda x, hparams, data: 0.0)


class TestProblemParts:
    def test_nothing_states_the_inner_problem(self):
        with pytest.raises(TypeError, match="nothing states the inner problem"):
            bl.Problem(outer_loss=squares)

    def test_a_design_needs_its_datafit(self):
        with pytest.raises(ValueError, match="datafit and design"):
            bl.Minimization(design=lambda hparams, data: FEATURES)

    def test_constraints_are_stated_one_way(self):
        with pytest.raises(ValueError, match="one way"):
            bl.Minimization(loss=squares, equality=squares, projection=squares)

    @pytest.mark.parametrize(
        ("problem", "expected"),
        [
            (bl.Problem(inner_loss=squares), optimality.Stationary),
            (bl.Problem(residuals=squares), optimality.Stationary),
            (lasso_problem(**LINEAR_MODEL), ProximalGradient),
            (bl.Problem(inner_loss=squares, projection=squares), optimality.ProjectedGradient),
            (bl.Problem(inner=bl.Minimization(loss=squares, inequality=squares)), KKT),
            (bl.Problem(inner=bl.Program(lambda hparams, data: None)), KKT),
            (bl.Problem(inner=bl.Program(lambda hparams, data: None, kind="cone")), optimality.Conic),
            (bl.Problem(optimality=squares), optimality.Custom),
        ],
    )
    def test_the_implied_condition(self, problem, expected):
        assert type(optimality.of(problem)) is expected

    @pytest.mark.parametrize(
        ("condition", "problem", "words"),
        [
            (optimality.Stationary(), lasso_problem(), "smooth unconstrained.*has Problem.prox"),
            (optimality.LeastSquares(), bl.Problem(inner_loss=squares), "needs residuals, .*has no Problem.residuals"),
            (optimality.NewtonStep(), lasso_problem(), "has Problem.prox"),
            (ProximalGradient(), bl.Problem(inner_loss=squares), "needs a prox, .*has no Problem.prox"),
            (ProximalGradient(support=3), lasso_problem(), "separable=True"),
            (
                optimality.ProjectedGradient(),
                lasso_problem(),
                "needs a set with a projection, .*has no Problem.projection",
            ),
            (optimality.BlockProximalGradient(), bl.Problem(inner_loss=squares), "needs a prox or a projection"),
            (optimality.MirrorStep(), lasso_problem(), "has Problem.prox: use the condition that the problem implies"),
            (KKT(), lasso_problem(), "needs constraints stated as functions, if any, .*has Problem.prox"),
            (optimality.QuadraticProgram(), bl.Problem(inner_loss=squares), "needs a quadratic program"),
            (optimality.Conic(), bl.Problem(inner_loss=squares), "needs a cone program"),
            (optimality.ConvexHull(vertices=squares), lasso_problem(), "has Problem.prox"),
        ],
    )
    def test_a_misfit_is_refused(self, condition, problem, words):
        with pytest.raises(ValueError, match=words):
            optimality.of(dataclasses.replace(problem, optimality=condition))

    @pytest.mark.parametrize("make", [ProximalGradient, optimality.ProjectedGradient, optimality.MirrorStep])
    def test_a_step_is_positive(self, make):
        with pytest.raises(ValueError, match="step must be positive, got -1"):
            make(step=-1)

    def test_half_a_mirror_map_is_refused(self):
        with pytest.raises(ValueError, match="mirror and projection belong together"):
            optimality.MirrorStep(mirror=jnp.log)

    def test_first_order_solvers_refuse_constraint_functions(self):
        point = KKTSolution(np.zeros(2))
        with pytest.raises(
            ValueError, match=r"stated by its projection, if any, and this one has equality constraints"
        ):
            bl.minimize(QUADRATIC, (np.eye(2), np.ones(2)), point, None, inner=bl.inner.FISTA())

    def test_an_outer_loss_is_needed_to_minimize(self):
        with pytest.raises(ValueError, match=r"needs Problem.outer_loss"):
            bl.minimize(bl.Problem(inner_loss=squares), np.zeros(2), np.zeros(24), None)


class TestShapes:
    def test_multipliers_match_their_constraints(self):
        hparams = np.eye(3), np.ones(3), np.ones((1, 3)), np.ones(1)
        with pytest.raises(ValueError, match=r"KKTSolution.dual_eq must have the structure and shapes of .*equality"):
            optimality.bind(QUADRATIC)(KKTSolution(jnp.zeros(3), jnp.zeros(2)), hparams)
        with pytest.raises(TypeError, match=r"must be a bilevel\.optimality\.KKTSolution"):
            optimality.bind(QUADRATIC)(jnp.zeros(3), hparams)

    def test_a_cone_program_has_the_rows_of_its_cones(self):
        program = ConeProgram(np.ones(2), np.ones((3, 2)), np.ones(3), Cones(zero=1, nonnegative=1))
        problem = bl.Problem(inner=bl.Program(lambda hparams, data: program, kind="cone"))
        with pytest.raises(ValueError, match=r"E must have the shape \(2, 2\)"):
            optimality.bind(problem)(optimality.ConicPoint(jnp.zeros(2), jnp.zeros(2), jnp.ones(())), None)

    def test_one_constant_per_row(self):
        problem = lasso_problem(
            optimality=optimality.BlockProximalGradient(), block_lipschitz=lambda hparams, data: (1.0, 2.0)
        )
        with pytest.raises(ValueError, match="one vector for each leaf"):
            optimality.bind(problem)(jnp.zeros(24), 0.0)


def test_embedding_and_back():
    program = ConeProgram(jnp.ones(2), jnp.ones((5, 2)), jnp.ones(5), Cones(nonnegative=5))
    dual, slack = jnp.array([1.0, 0, 2, 0, 0]), jnp.array([0.0, 3, 0, 1, 0.5])
    point = optimality.Conic.embed(jnp.array([1.0, 2.0]), dual, slack)
    scaled = jax.tree.map(lambda a: 3 * a, point)
    for each in (point, scaled):
        back = optimality.Conic.recover(each, program)
        np.testing.assert_allclose(back.primal, [1.0, 2.0])
        np.testing.assert_allclose(back.dual, dual)
        np.testing.assert_allclose(back.slack, slack)


def test_float32_keeps_its_type_in_every_form(dtype):
    problem = problems.ALL["lasso"]
    hparams, data = problems.hparams("lasso", dtype), problems.data(dtype)
    params = jnp.where(jnp.arange(8) < 3, problems.start(dtype), 0)
    system = optimality.bind(problem).system(params, hparams, data)
    assert system.solve(linear.Auto(), params).value.dtype == dtype
    assert system.solve_transposed(linear.Auto(), params).value.dtype == dtype
