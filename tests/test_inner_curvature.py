"""What the first-order and quasi-Newton solvers make of curvature: longer steps, steps taken back, a first inverse Hessian."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from conftest import precision
from problems import status_of

import bilevel as bl
from bilevel import Status, inner
from bilevel.operators.projection import projection_simplex
from bilevel.problem import Problem
from bilevel.statements import LinearModel

pytestmark = pytest.mark.slice(8)

RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(200, 12)) * np.logspace(0, -2, 12)
LABELS = RNG.integers(0, 3, size=200)
PROGRAM = {"q": 300 * FEATURES[:12].T @ FEATURES[:12], "c": RNG.normal(size=12)}


def outer_loss(params, hparams, data):
    return jnp.sum(params**2)


def solve(solver, problem, start, hparams=None, data=None):
    return jax.jit(lambda p, h, d: solver.solve(problem, p, h, d))(start, hparams, data)


def converged(found):
    return status_of(found) is Status.CONVERGED


class TestFISTA:
    @pytest.mark.parametrize("name", ["lasso", "non_negative"])
    def test_a_generous_lipschitz_constant_costs_little(self, strict, name):
        base = problems.ALL[name]
        generous = 30 * float(np.linalg.norm(problems.FEATURES, 2) ** 2)
        problem = dataclasses.replace(base, lipschitz=lambda h, d: generous)
        args = (problem, problems.start(), problems.hparams(name), problems.data())
        adaptive, fixed = (solve(inner.FISTA(rtol=1e-9, adaptive=adaptive), *args) for adaptive in (True, False))
        assert converged(adaptive)
        assert converged(fixed)
        np.testing.assert_allclose(adaptive.params, fixed.params, atol=1e-6)
        assert int(adaptive.progress.grad_evals) < int(fixed.progress.grad_evals) / 2

    @pytest.mark.parametrize("acceleration", [True, False])
    @pytest.mark.parametrize(
        ("loss", "start", "expected"),
        [
            # The first gradient does not show the largest eigenvalue.
            (
                lambda x: jnp.vdot(jnp.array([1e4, 1.0, 1.0]) * x, x) / 2 - jnp.vdot(jnp.array([1e-8, 1.0, 1.0]), x),
                [0.0, 0.0, 0.0],
                [1e-12, 1.0, 1.0],
            ),
            # The curvature at 5 asks for a step to −15, where the loss is not a number.
            (lambda x: jnp.sum(x - jnp.log(x)), [5.0, 3.0], [1.0, 1.0]),
            (lambda x: jnp.sum(jnp.exp(x) + jnp.exp(-2 * x)), [12.0, -6.0], [np.log(2) / 3] * 2),
        ],
        ids=["hidden curvature", "out of the domain", "steep"],
    )
    def test_a_step_that_is_too_long_is_taken_back(self, strict, loss, start, expected, acceleration):
        problem = Problem(lambda x, h, d: loss(x), outer_loss)
        found = solve(inner.FISTA(rtol=1e-10, acceleration=acceleration), problem, jnp.array(start))
        assert converged(found)
        np.testing.assert_allclose(found.params, expected, rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize(
        ("loss", "lipschitz", "start", "status"),
        [
            (lambda x: jnp.where(jnp.all(x == 1), 1.0, jnp.nan) * jnp.sum(x**2), None, [1.0, 1.0], Status.BREAKDOWN),
            (lambda x: jnp.sum(jnp.sqrt(x)), lambda h, d: 1.0, [0.0, 0.0], Status.NON_FINITE),
        ],
        ids=["finite at one point only", "an infinite gradient"],
    )
    def test_losses_that_are_not_finite(self, strict, loss, lipschitz, start, status):
        problem = Problem(lambda x, h, d: loss(x), outer_loss, lipschitz=lipschitz)
        found = solve(inner.FISTA(), problem, jnp.array(start))
        assert status_of(found) is status


class TestMirrorDescent:
    quadratic = Problem(
        lambda x, h, d: jnp.vdot(x, d["q"] @ x) / 2 + jnp.vdot(d["c"], x),
        outer_loss,
        projection=lambda x, h, d: projection_simplex(x),
    )

    def test_one_gradient_per_step(self, strict):
        data = jax.tree.map(jnp.asarray, PROGRAM)
        found = solve(inner.MirrorDescent(rtol=1e-9), self.quadratic, jnp.full(12, 1 / 12), data=data)
        assert converged(found)
        assert int(found.progress.grad_evals) == int(found.steps) + 1
        best = solve(inner.FISTA(rtol=1e-12), self.quadratic, jnp.full(12, 1 / 12), data=data)
        np.testing.assert_allclose(found.params, best.params, atol=1e-6)

    def test_a_convex_loss_never_grows(self, strict):
        data = jax.tree.map(jnp.asarray, PROGRAM)
        solver = inner.MirrorDescent()
        state = solver.init(bl.At(self.quadratic, None, data), jnp.full(12, 1 / 12))
        step = jax.jit(lambda s: solver.step(bl.At(self.quadratic, None, data), s))
        loss = jax.jit(lambda x: self.quadratic.inner_loss(x, None, data))
        losses, sizes = [], []
        for _ in range(60):
            losses.append(float(loss(state.params)))
            sizes.append(float(state.step_size))
            state = step(state)
        assert max(np.diff(losses)) <= 1e-14 * abs(losses[0])
        assert min(np.diff(losses)) < 0
        assert max(sizes) > 2 * sizes[0], "it never took a longer step than 1/L"

    def test_what_became_too_small_for_the_precision_comes_back_and_exact_zeros_stay(self):
        """A warm start from a corner of the simplex, after which the loss wants another one."""
        problem = Problem(
            lambda x, h, d: jnp.vdot(x - d, x - d) / 2, outer_loss, projection=lambda x, h, d: projection_simplex(x)
        )
        solver = inner.MirrorDescent(rtol=1e-6)
        with precision("float32"):
            long = inner.MirrorDescent(rtol=1e-6, step_size=10.0)  # e⁻⁷⁰⁰ after one
            away = long.solve(problem, jnp.full(3, 1 / 3), None, jnp.array([40.0, -40.0, -30.0]))
            assert converged(away)
            np.testing.assert_allclose(away.params, [1, 0, 0], atol=1e-30)
            back = solver.solve(problem, away.params, None, jnp.array([0.2, 0.3, 0.5]))
            assert converged(back)
            np.testing.assert_allclose(back.params, [0.2, 0.3, 0.5], atol=1e-5)
            kept = solver.solve(problem, jnp.array([0.5, 0.5, 0.0]), None, jnp.array([0.2, 0.3, 0.5]))
        assert float(kept.params[2]) == 0
        np.testing.assert_allclose(kept.params[:2], [0.45, 0.55], atol=1e-4)

    def test_a_loss_that_is_not_finite_is_taken_back(self, strict):
        """The first step would leave the domain of the logarithm."""
        problem = Problem(
            lambda x, h, d: 10 * x[0] - jnp.log(x[0] - 0.05),
            outer_loss,
            projection=lambda x, h, d: projection_simplex(x),
            lipschitz=lambda h, d: 1.0,
        )
        found = solve(inner.MirrorDescent(rtol=1e-10), problem, jnp.array([0.5, 0.25, 0.25]))
        np.testing.assert_allclose(found.params[0], 0.15, rtol=1e-6)


class TestGramOfLBFGS:
    @staticmethod
    def model(loss="logistic"):
        return Problem(
            outer_loss=outer_loss,
            linear_model=LinearModel(
                loss=loss, rows=lambda data: (data["x"], data["y"]), l2=lambda h: jnp.exp(h), mean=True
            ),
        )

    @staticmethod
    def data(kind):
        targets = {"classes": LABELS, "binary": LABELS > 1, "real": RNG.normal(size=200)}[kind]
        targets = targets if kind == "real" else jnp.asarray(targets, jnp.int32)
        return {"x": jnp.asarray(FEATURES), "y": jnp.asarray(targets)}

    @pytest.mark.parametrize(
        ("loss", "kind", "shape", "penalty"),
        [
            ("logistic", "classes", (12, 3), "per feature"),
            ("logistic", "binary", (12,), "one"),
            ("squared", "real", (12,), "per feature"),
        ],
    )
    def test_half_the_gradients_of_the_bare_loss(self, strict, loss, kind, shape, penalty):
        stated, data = self.model(loss), self.data(kind)
        bare = Problem(stated.parts.inner_loss, outer_loss)
        hparams = jnp.full((), -8.0) if penalty == "one" else jnp.linspace(-12.0, -4.0, 12)
        with_gram, without = (
            solve(inner.LBFGS(rtol=1e-9), problem, jnp.zeros(shape), hparams, data) for problem in (stated, bare)
        )
        assert converged(with_gram)
        assert converged(without)
        np.testing.assert_allclose(with_gram.params, without.params, atol=1e-4 * float(jnp.abs(without.params).max()))
        assert int(with_gram.progress.grad_evals) < int(without.progress.grad_evals) / 2

    def test_a_quadratic_takes_two_steps(self, strict):
        found = solve(inner.LBFGS(), self.model("squared"), jnp.zeros(12), jnp.array(-3.0), self.data("real"))
        assert converged(found)
        assert int(found.steps) <= 3

    def test_no_penalty(self, strict):
        """A Gram matrix that is singular, and nothing to make up for it: still a solution."""
        data = self.data("real")
        data["x"] = data["x"].at[:, 3].set(data["x"][:, 2])
        found = solve(inner.LBFGS(rtol=1e-10), self.model("squared"), jnp.zeros(12), jnp.array(-jnp.inf), data)
        assert converged(found)
        residual = (data["x"] @ found.params - data["y"]) @ data["x"]
        np.testing.assert_allclose(residual, 0, atol=1e-8)

    def test_only_where_the_loss_is_the_models_and_small(self, strict):
        hparams, data, solver = jnp.array(0.0), self.data("real"), inner.LBFGS()
        stated = self.model("squared")
        assert solver.prepare(bl.At(stated, hparams, data)).shape == (12, 12)
        over_a_set = dataclasses.replace(stated, projection=lambda x, h, d: jnp.maximum(x, 0))
        assert solver.prepare(bl.At(over_a_set, hparams, data)) is None
        assert solver.prepare(bl.At(problems.ridge, hparams, problems.data())) is None
        wide = {"x": jnp.ones((20, 100)), "y": jnp.ones(20)}
        assert solver.prepare(bl.At(stated, hparams, wide)) is None


def test_semismooth_newton_and_anderson_are_as_fast_as_their_names_say(x64):
    """A wrong sign in either still converges, by its safeguard, at the speed of the plain step."""
    rng = np.random.default_rng(3)
    scales = jnp.asarray(np.geomspace(1, 1e3, 40))
    data = jnp.asarray(rng.normal(size=40))
    problem = Problem(
        lambda x, h, d: jnp.sum(scales * (x - d) ** 2) / 2,
        outer_loss,
        prox=lambda x, h, d, step: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.1 * step, 0),
        separable=True,
    )
    plain = solve(inner.FixedPointIteration(rtol=1e-8), problem, jnp.zeros(40), data=data)
    newton = solve(inner.SemismoothNewton(rtol=1e-8), problem, jnp.zeros(40), data=data)
    anderson = solve(inner.Anderson(rtol=1e-8, memory=10), problem, jnp.zeros(40), data=data)
    assert converged(plain)
    assert converged(newton)
    assert converged(anderson)
    assert int(newton.progress.grad_evals) < int(plain.progress.grad_evals) / 50
    assert int(anderson.steps) < int(plain.steps) / 3
