"""Derivatives around external solvers, by `custom_root`, under jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from external_cases import NOISY, X, Y, linear_problem, program_case

import bilevel as bl
from bilevel import inner
from bilevel.operators.cones import Cones
from bilevel.optimality import Conic, ConicPoint
from bilevel.statements import ConeProgram

pytestmark = pytest.mark.slice(12)


def logistic_case():
    """Six Newton steps from zero, differentiated as they stand."""
    problem = linear_problem("logistic", l2=jnp.exp)
    data = jnp.asarray(X), jnp.asarray(NOISY)

    def newton(hparams):
        gradient = jax.grad(lambda w: problem.parts.inner_loss(w.reshape(8, 3), hparams, data))

        def step(w, _):
            return w - jnp.linalg.solve(jax.jacfwd(gradient)(w), gradient(w)), None

        return jax.lax.scan(step, jnp.zeros(24), length=6)[0].reshape(8, 3)

    return inner.SklearnLogisticRegression(), problem, jnp.zeros((8, 3)), jnp.linspace(0.0, 2.0, 8), data, newton


def lasso_case():
    """On its support the solution is that of a linear system."""
    problem, theta = linear_problem(l1=jnp.exp), jnp.linspace(1.0, 3.0, 8)
    data = (jnp.asarray(X), jnp.asarray(Y))
    at = np.asarray(inner.FISTA(rtol=1e-13, max_steps=50_000).solve(problem, jnp.zeros(8), theta, data).params)
    support, signs = np.nonzero(at)[0], np.sign(at[at != 0])
    assert 3 <= len(support) <= 6
    columns = jnp.asarray(X[:, support])

    def closed_form(hparams):
        found = jnp.linalg.solve(columns.T @ columns, columns.T @ Y - signs * jnp.exp(hparams[support]))
        return jnp.zeros(8).at[support].set(found)

    return inner.SklearnLasso(), problem, jnp.zeros(8), theta, data, closed_form


def cone_case():
    """minimize cᵀz over ‖z‖ ≤ r: z = −r c/‖c‖, dual (‖c‖, c), slack (r, z)."""

    def program(hparams, data):
        c, radius = hparams[1:], jnp.exp(hparams[0])
        e = -jnp.vstack([jnp.zeros((1, 4)), jnp.eye(4)])
        return ConeProgram(c, e, jnp.zeros(5).at[0].set(radius), Cones(second_order=(5,)))

    def closed_form(hparams):
        c, radius = hparams[1:], jnp.exp(hparams[0])
        norm = jnp.linalg.norm(c)
        z = -radius * c / norm
        return Conic.embed(z, jnp.r_[norm, c], jnp.r_[radius, z])

    problem, theta = bl.Problem(inner=bl.Program(program, kind="cone")), jnp.array([0.3, 1.0, -2.0, 0.5, 0.1])
    start = ConicPoint(jnp.zeros(4), jnp.zeros(5), jnp.ones(()))
    return inner.CVXPY(), problem, start, theta, None, closed_form


def measure(params):
    return sum(jnp.sum(jnp.sin(x) * jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in jax.tree.leaves(params))


def derivatives(function):
    """Gradient, a derivative in forward mode, and that of the gradient, forward over reverse."""

    def at(theta):
        direction = (jnp.cos(3 * jnp.arange(theta.size)),)
        gradient, curved = jax.jvp(jax.grad(function), (theta,), direction)
        return gradient, jax.jvp(function, (theta,), direction)[1], curved

    return at


@pytest.mark.parametrize("make", [logistic_case, lasso_case, program_case, cone_case], ids=lambda f: f.__name__)
def test_derivatives_around_a_black_box_in_lanes(x64, make):
    solver, problem, start, theta, data, reference = make()
    thetas = theta + 1e-3 * jnp.asarray(np.random.default_rng(1).normal(size=(3, theta.size)))

    @bl.custom_root(bl.optimality.bind(problem))
    def black_box(start, hparams, data):
        return solver.solve(problem, start, hparams, data).params

    def function(hparams):
        return measure(black_box(start, hparams, data))

    lanes = jax.jit(jax.vmap(derivatives(function)))(thetas)
    expected = jax.jit(jax.vmap(derivatives(lambda h: measure(reference(h)))))(thetas)
    for found, right in zip(lanes, expected, strict=True):
        assert np.min(np.max(np.abs(right).reshape(3, -1), axis=1)) > 1e-3
        np.testing.assert_allclose(found, right, atol=1e-6 * np.max(np.abs(right)))
