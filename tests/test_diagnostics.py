"""The checks for users: silent where all is well, and naming what is wrong where something is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import bilevel as bl
from bilevel import linear
from bilevel.diagnostics._numeric import richardson

pytestmark = pytest.mark.slice(8)


@functools.cache
def solved(name):
    problem, hparams, data = problems.ALL[name], problems.hparams(name), problems.data()
    inner = bl.inner.FISTA(rtol=1e-13, max_steps=20_000)
    return problem, inner.solve(problem, problems.start(), hparams, data).params, hparams, data


def complaints(report):
    text = str(report)
    for each in report.problems:
        assert f"✗ {each}" in text
    return "\n".join(report.problems)


@pytest.mark.usefixtures("x64")
class TestOptimality:
    @pytest.mark.parametrize("name", problems.ALL)
    def test_a_solution_passes(self, name):
        report = bl.check_optimality(*solved(name))
        assert report.ok
        assert report.distance < 1e-9
        assert report.dot_test < 1e-9
        assert "check_optimality: fine" in str(report)

    def test_distance_is_the_distance(self):
        def condition(x, scale, target):
            return jnp.array([1.0, 30.0, 900.0]) * scale * (x - target)

        target = jnp.array([1.0, 2.0, 3.0])
        off = target + jnp.array([0.0, 0.01, 0.0])
        report = bl.check_optimality(condition, off, 2.0, target)
        assert "not a root" in complaints(report)
        assert report.distance == pytest.approx(0.01 / np.linalg.norm(off), rel=1e-6)
        assert report.residual == pytest.approx(0.6, rel=1e-6)
        assert 300 < report.amplification <= 900.01
        assert bl.check_optimality(condition, off, 2.0, target, rtol=0.1).ok

    def test_another_condition_than_the_solver_s(self):
        problem, params, hparams, data = solved("ridge")
        wrong = dataclasses.replace(
            problem, optimality=lambda x, hparams, data: jax.grad(problems.ridge_loss)(x, hparams + 0.1, data)
        )
        assert "not a root" in complaints(bl.check_optimality(wrong, params, hparams, data))

    def test_a_kink(self):
        problem = bl.Problem(
            inner_loss=lambda x, hparams, data: jnp.sum((x - data) ** 2) / 2,
            prox=lambda x, hparams, data, step: problems.prox_lasso(x, hparams, step),
            separable=True,
            lipschitz=lambda hparams, data: 1.0,
        )
        params = jnp.array([2.0, 0.0, 0.0])
        clear = bl.check_optimality(problem, params, 1.0, jnp.array([3.0, 0.5, 0.1]))
        assert clear.ok
        assert clear.jump < 1e-5
        at_kink = bl.check_optimality(problem, params, 1.0, jnp.array([3.0, 1.0, 0.1]))
        assert "strict complementarity nearly fails" in complaints(at_kink)

    def test_a_vanishing_multiplier(self):
        """z ≤ 0 at the minimum of z²: λ = G = 0, where the system is singular."""
        problem = bl.Problem(
            inner=bl.Minimization(
                loss=lambda z, hparams, data: jnp.sum((z - hparams) ** 2), inequality=lambda z, hparams, data: z
            )
        )
        point = bl.optimality.KKTSolution(jnp.zeros(2), None, jnp.zeros(2))
        report = bl.check_optimality(problem, point, jnp.zeros(2), None)
        assert report.margin == 0
        assert "both vanish" in complaints(report)
        clear = bl.optimality.KKTSolution(jnp.zeros(2), None, 2 * jnp.ones(2))
        assert bl.check_optimality(problem, clear, jnp.ones(2), None).ok

    def test_a_structure_that_does_not_hold(self):
        class Wrong(linear.RootFunction):
            def __call__(self, x, theta):
                return jnp.array([[2.0, 1.0], [-1.0, 2.0]]) @ x - theta

            def system(self, x, theta):
                push = jax.linearize(lambda x: self(x, theta), x)[1]
                return linear.System(linear.Operator(push, "symmetric"))

        theta = jnp.array([1.0, 3.0])
        found = bl.check_optimality(Wrong(), jnp.linalg.solve(jnp.array([[2.0, 1.0], [-1.0, 2.0]]), theta), theta)
        assert "declared symmetric and is not" in complaints(found)

    def test_a_singular_system(self):
        def condition(x, theta):
            return jnp.array([[1.0, 1.0], [1.0, 1.0]]) @ x - theta

        report = bl.check_optimality(condition, jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0]))
        assert "is not solved" in complaints(report)

    def test_a_wrong_linear_solver_is_noticed(self):
        wrong = bl.linear.Wrapped(function=lambda matvec, b: jnp.roll(b, 1), rtol=1e6)
        report = bl.check_optimality(*solved("logistic"), solve=wrong, rtol=10.0)
        assert "JVP and VJP disagree" in complaints(report)
        assert 0.01 < report.dot_test < np.inf

    def test_not_finite(self):
        report = bl.check_optimality(lambda x, theta: x / theta, jnp.zeros(2), jnp.zeros(2))
        assert "not finite" in complaints(report)

    def test_arguments_without_a_derivative(self):
        report = bl.check_optimality(lambda x, n, y: n * x - y, jnp.array([0.5, 1.0]), 2, jnp.array([1.0, 2.0]))
        assert report.ok

    def test_another_structure_is_refused(self):
        with pytest.raises(ValueError, match="the value of the condition must have the structure"):
            bl.check_optimality(lambda x: x[:1], jnp.zeros(2))


@pytest.mark.usefixtures("x64")
class TestDerivative:
    def test_right(self):
        report = bl.check_derivative(lambda x, y: jnp.sin(x) * y, jnp.array([0.3, 2.0]), jnp.array(4.0), argnums=(0, 1))
        assert report.ok
        assert max(report.gaps) < 1e-9
        assert "check_derivative: fine" in str(report)

    def test_a_wrong_sign(self):
        @jax.custom_jvp
        def wrong(x):
            return x**2

        wrong.defjvp(lambda primals, tangents: (wrong(*primals), -2 * primals[0] * tangents[0]))
        report = bl.check_derivative(wrong, jnp.array([1.0, 2.0]))
        assert max(report.gaps) == pytest.approx(2.0, rel=1e-6)
        assert "the derivative is off by 2.0e+00" in complaints(report)

    def test_a_missing_transpose(self):
        a = jnp.array([[1.0, 2.0], [0.0, 1.0]])

        def product(x):
            return jax.lax.custom_linear_solve(
                lambda v: jnp.linalg.solve(a, v), x, lambda _, v: a @ v, lambda _, v: a @ v
            )

        report = bl.check_derivative(product, jnp.array([1.0, -2.0]))
        assert max(report.gaps) < 1e-9
        assert "JVP and VJP disagree" in complaints(report)

    def test_a_jump(self):
        report = bl.check_derivative(lambda x: jnp.where(x > 1, 5.0, x), jnp.array(1.0))
        assert "differences do not settle" in complaints(report)

    def test_richardson_knows_its_error(self):
        for function, expected in ((np.sin, 1.0), (np.exp, 1.0), (lambda t: t**9 + 2 * t, 2.0)):
            found = richardson(lambda t, f=function: jnp.asarray(f(t)), 0.5)
            assert abs(found.value[0] - expected) <= max(10 * found.error, 1e-12)
            assert found.error < 1e-7
        rng = np.random.default_rng(0)
        noisy = richardson(lambda t: jnp.asarray(np.sin(t) + 1e-6 * rng.normal()), 0.5)
        assert 1e-8 < noisy.error < 1e-3
        assert abs(noisy.value[0] - 1) < 10 * noisy.error


@pytest.mark.usefixtures("x64")
class TestHypergradient:
    def check(self, problem, name="ridge", **settings):
        inner = bl.inner.Quadratic() if name == "ridge" else bl.inner.FISTA(rtol=1e-12, max_steps=20_000)
        args = problems.hparams(name), problems.start(), problems.data()
        return bl.check_hypergradient(problem, *args, **{"inner": inner, **settings})

    @pytest.mark.parametrize("name", ["logistic", "lasso", "simplex"])
    def test_right(self, name):
        report = self.check(problems.ALL[name], name)
        assert report.ok
        assert report.solution is not None
        assert max(report.gaps) < 1e-6
        assert report.causes == {}
        assert "check_hypergradient: fine" in str(report)

    @pytest.mark.parametrize(
        ("name", "settings", "words"),
        [
            ("ridge", {"inner": bl.inner.LBFGS(rtol=0.1)}, "closes with a tight inner rtol"),
            (
                "ridge",
                {"hypergrad": bl.hypergrad.Implicit(linear=bl.linear.CG(rtol=0.3))},
                "closes with a tight adjoint rtol",
            ),
            ("logistic", {"inner": bl.inner.FISTA(rtol=1e-12, max_steps=3)}, "a solve did not converge, max_steps"),
        ],
        ids=["inner", "adjoint", "too few steps"],
    )
    def test_a_loose_solve_is_to_blame(self, name, settings, words):
        assert words in complaints(self.check(problems.ALL[name], name, **settings))

    def test_a_wrong_condition_is_to_blame(self):
        wrong = dataclasses.replace(
            problems.ridge, optimality=lambda x, hparams, data: jax.grad(problems.ridge_loss)(x, hparams + 0.3, data)
        )
        report = self.check(wrong)
        assert "no tolerance explains the gap" in complaints(report)
        assert set(report.causes) == {"inner rtol", "adjoint rtol", "inner and adjoint"}

    def test_an_estimator_without_a_condition(self):
        report = self.check(problems.ridge, hypergrad=bl.hypergrad.Unrolled(steps=1))
        assert report.solution is None
        assert max(report.gaps) < 1e-6


def test_float32():
    args = problems.hparams("ridge", "float32"), problems.start("float32"), problems.data("float32")
    report = bl.check_hypergradient(problems.ridge, *args, inner=bl.inner.Quadratic())
    assert report.ok
    assert report.tolerance == pytest.approx(1.2e-7**0.25, rel=0.01)
