"""`LevenbergMarquardt`, `TrustRegion`, `FIRE` and `Newton` on what each is for: residuals, saddles, energies, singular minima."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import status_of

import bilevel as bl
from bilevel import Status, inner

pytestmark = pytest.mark.slice(8)

TIMES = np.linspace(0.0, 4.0, 30)
DECAY = 2.5 * np.exp(-1.3 * TIMES) + 0.5
NOISY = DECAY + 0.05 * np.random.default_rng(0).normal(size=30)


def rosenbrock(x, h, d):
    return h * (x[1:] - x[:-1] ** 2), 1 - x[:-1]


def powell(x, h, d):
    """Zero at 0, where the Jacobian is singular."""
    return jnp.stack([x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])


def exponential(x, h, d):
    return x[0] * jnp.exp(-x[1] * d[0]) + x[2] - d[1], h * x


FITS = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0, 1.0], 10.0, None),
    "powell": (powell, [3.0, -1.0, 0.0, 1.0], 0.0, None),
    "exact fit": (exponential, [1.0, 1.0, 0.0], 0.0, (TIMES, DECAY)),
    "noisy fit": (exponential, [1.0, 0.1, 0.0], 0.1, (TIMES, NOISY)),
}
DAMPED, GAUSS_NEWTON = inner.LevenbergMarquardt(rtol=1e-13), inner.LevenbergMarquardt(rtol=1e-13, damping=0.0)
TRUST_REGION = inner.TrustRegion(rtol=1e-13)


def arrays(*trees, dtype="float64"):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), trees, is_leaf=lambda a: isinstance(a, list))


def states(solver, problem, steps, *args):
    """The params after each step."""
    step = jax.jit(lambda state: solver.step(bl.At(problem, *args[1:]), state))
    state, seen = jax.jit(lambda p, h, d: solver.init(bl.At(problem, h, d), p))(*args), []
    for _ in range(steps):
        state = step(state)
        seen.append(np.asarray(state.params))
    return seen


# Least squares


@pytest.mark.parametrize(
    ("solver", "name"),
    [(DAMPED, name) for name in FITS]
    + [(GAUSS_NEWTON, name) for name in ("rosenbrock", "noisy fit")]
    + [(TRUST_REGION, "noisy fit"), (inner.TrustRegion(), "powell"), (inner.Newton(), "powell")],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__} {getattr(value, 'damping', '')}",
)
def test_least_squares_fits_match_scipy(strict, solver, name):
    from scipy.optimize import least_squares

    residuals, *rest = FITS[name]
    start, weight, data = arrays(*rest)
    found = solver.solve(bl.Problem(residuals=residuals), start, weight, data)
    assert status_of(found) is Status.CONVERGED

    def flat(x):
        return np.concatenate([np.ravel(part) for part in jax.tree.leaves(residuals(jnp.asarray(x), weight, data))])

    expected = least_squares(flat, np.asarray(start), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    atol = 1e-3 if name == "powell" else 1e-6  # the gradient falls by the cube of the distance
    np.testing.assert_allclose(found.params, expected.x, atol=atol)


@pytest.mark.parametrize("damping", [0.1, 0.0])
def test_zero_residuals_are_reached_quadratically(x64, damping):
    """Also with a damping that would slow the last steps down, did it not vanish with the residuals."""
    args = arrays([1.0, 1.0, 0.0], 0.0, (TIMES, DECAY))
    solver = inner.LevenbergMarquardt(rtol=1e-13, damping=damping)
    seen = states(solver, bl.Problem(residuals=exponential), 8, *args)
    errors = [np.linalg.norm(x - [2.5, 1.3, 0.5]) for x in seen]
    last = [error for error in errors if error > 1e-9][-2:]
    assert last[1] <= last[0] ** 2 < 1e-4
    assert min(errors) < 1e-13


def test_the_damping_is_what_keeps_a_wild_step_from_being_taken(x64):
    """From far away, where a Gauss–Newton step leads to an overflow, the damped one goes downhill all the way."""
    problem = bl.Problem(residuals=lambda x, h, d: jnp.exp(x * d) - jnp.exp(h * d))
    args = jnp.array([-3.0]), jnp.array(1.0), jnp.array([0.5, 1.0, 2.0])
    found = inner.LevenbergMarquardt().solve(problem, *args)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.params, 1.0, rtol=1e-7)
    seen = states(inner.LevenbergMarquardt(), problem, int(found.steps), *args)
    losses = [float(problem.parts.inner_loss(x, *args[1:])) for x in [args[0], *seen]]
    assert all(after <= before for before, after in itertools.pairwise(losses))


def test_large_systems_are_solved_by_products(x64):
    """Above what `linear.Auto` factors: 600 unknowns, a banded Jacobian."""
    problem = bl.Problem(residuals=lambda x, h, d: (x[1:] - h * x[:-1] - 0.1 * x[:-1] ** 2, x[0] - 1, x[-1] - 2))
    found = inner.LevenbergMarquardt().solve(problem, jnp.zeros(600), jnp.array(0.5), None)
    assert status_of(found) is Status.CONVERGED
    gradient = jax.grad(problem.parts.inner_loss)(found.params, jnp.array(0.5), None)
    assert float(jnp.linalg.norm(gradient)) <= 1e-6


# Nonconvex losses


def two_wells(x, h, d):
    """Minima at x₀ = ±1, a saddle at 0."""
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + h * jnp.sum(x[1:] ** 2) / 2


TWO_WELLS = bl.Problem(two_wells)


@pytest.mark.parametrize("start", [[0.0, 1.0, -1.0], [0.0, 0.0, 0.0], [1e-9, 0.0, 1.0], [0.3, 2.0, 0.0]])
@pytest.mark.parametrize("radius", [None, 0.1])
def test_a_saddle_is_left(x64, start, radius):
    """Also from a start whose gradient never shows the direction of negative curvature, or vanishes."""
    found = inner.TrustRegion(radius=radius).solve(TWO_WELLS, jnp.array(start), jnp.array(1.0), None)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(jnp.abs(found.params), [1.0, 0.0, 0.0], atol=1e-6)


def test_an_antisymmetric_direction_of_negative_curvature_is_found(x64):
    """Two scalar leaves, and a saddle along their difference."""
    problem = bl.Problem(lambda x, h, d: h * (x["a"] + x["b"]) ** 2 + ((x["a"] - x["b"]) ** 2 - 1) ** 2)
    found = inner.TrustRegion().solve(problem, {"a": jnp.zeros(()), "b": jnp.zeros(())}, jnp.array(1.0), None)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(jnp.abs(found.params["a"] - found.params["b"]), 1.0, rtol=1e-7)
    np.testing.assert_allclose(found.params["a"] + found.params["b"], 0.0, atol=1e-7)


def test_a_flat_minimum_is_no_saddle(x64):
    """A minimum along a line: the curvature there is zero up to rounding, and the solve ends."""
    problem = bl.Problem(lambda x, h, d: jnp.sum((x[:, None] - x[None, :] - d) ** 2))
    place = jnp.array([0.3, -1.0, 2.0, 0.1])
    data = place[:, None] - place[None, :]
    found = inner.TrustRegion().solve(problem, jnp.ones(4), jnp.array(0.0), data)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.params - found.params[0], place - place[0], atol=1e-7)


def test_the_trust_region_follows_rosenbrocks_valley(x64):
    problem = bl.Problem(residuals=rosenbrock)
    found = TRUST_REGION.solve(problem, jnp.full(30, -1.2), jnp.array(10.0), None)
    assert status_of(found) is Status.CONVERGED
    value = float(problem.parts.inner_loss(found.params, 10.0, None))
    assert value < 1e-20 or abs(value - 1.9930) < 1e-2  # the chained function has a second minimum near x₀ = −1
    assert int(found.progress.hvps) < 3000


# Energies


def published_fire(force, x, dt, dt_max, steps, n_min=5, f_inc=1.1, f_dec=0.5, start=0.1, f_alpha=0.99):
    """The algorithm of Bitzek et al., step by step in NumPy."""
    velocity, alpha, positive, seen, now = np.zeros_like(x), start, 0, [], force(x)
    for _ in range(steps):
        x = x + dt * velocity + dt**2 / 2 * now
        ahead = force(x)
        velocity = velocity + dt / 2 * (now + ahead)
        now = ahead
        power = np.sum(now * velocity)
        velocity = (1 - alpha) * velocity + alpha * now / np.linalg.norm(now) * np.linalg.norm(velocity)
        if power > 0:
            if positive > n_min:
                dt, alpha = min(dt * f_inc, dt_max), alpha * f_alpha
            positive += 1
        else:
            positive, dt, alpha, velocity = 0, dt * f_dec, start, 0 * velocity
        seen.append(x)
    return seen


def packing(x, h, d):
    """Harmonic discs of diameter d in a periodic unit square; x of shape (n, 2)."""
    first, second = np.triu_indices(x.shape[0], 1)
    apart = x[first] - x[second]
    apart = apart - jnp.round(apart)
    distance = jnp.sqrt(jnp.sum(apart**2, axis=1))
    return h * jnp.sum(jnp.maximum(1 - distance / d, 0) ** 2) / 2


def discs(n, density):
    return np.random.default_rng(0).uniform(size=(n, 2)), 1.0, 2 * np.sqrt(density / (n * np.pi))


def test_fire_is_the_published_algorithm(x64):
    x, h, d = arrays(*discs(16, 1.0))
    force = jax.jit(lambda x: -jax.grad(packing)(x, h, d))
    expected = published_fire(lambda x: np.asarray(force(x)), np.asarray(x), 0.01, 0.04, 60)
    solver = inner.FIRE(dt=0.01)  # dt_max is 4 dt
    np.testing.assert_allclose(states(solver, bl.Problem(packing), 60, x, h, d), expected, rtol=1e-9)


@pytest.mark.parametrize("dt", [None, 0.01])
def test_fire_relaxes_a_packing(x64, dt):
    """Jammed discs come to rest: the force on each vanishes beside the forces between them; the center stays."""
    x, h, d = arrays(*discs(16, 1.0))
    found = inner.FIRE(dt=dt, rtol=1e-14, atol=0.0).solve(bl.Problem(packing), x, h, d)
    assert status_of(found) is Status.CONVERGED
    energy, force = jax.value_and_grad(packing)(found.params, h, d)
    assert float(energy) > 0.01
    assert float(jnp.linalg.norm(force)) < 1e-11
    np.testing.assert_allclose(found.params.mean(0), x.mean(0), atol=1e-10)


def test_fire_ends_where_nothing_overlaps(x64):
    x, h, d = arrays(*discs(16, 0.4))
    found = inner.FIRE().solve(bl.Problem(packing), x, h, d)
    assert status_of(found) is Status.CONVERGED
    assert float(packing(found.params, h, d)) == 0


def test_fires_own_time_step_is_scale_free(x64):
    """Energies and lengths in other units: the same steps, and the same answer in these units."""
    x, h, d = arrays(*discs(16, 1.0))
    base = inner.FIRE(rtol=1e-10).solve(bl.Problem(packing), x, h, d)
    scaled = bl.Problem(lambda x, h, d: 1e6 * packing(x / 1e3, h, d))
    other = inner.FIRE(rtol=1e-10).solve(scaled, 1e3 * x, h, d)
    assert abs(int(other.steps) - int(base.steps)) <= 0.2 * int(base.steps)
    np.testing.assert_allclose(packing(other.params / 1e3, h, d), packing(base.params, h, d), rtol=1e-9)


# The contract


def test_a_step_from_a_stationary_point_has_newtons_derivative(x64):
    """x* = θ with the gradient exactly zero: one unrolled step gives dx*/dθ = 1."""
    problem = bl.Problem(
        residuals=lambda x, h, d: jnp.exp(x) - jnp.exp(h), outer_loss=lambda x, h, d: jnp.sum(jnp.arange(1.0, 4.0) * x)
    )
    theta, unrolled = jnp.array([0.1, -0.4, 0.7]), bl.hypergrad.Unrolled(steps=1)
    for solver in (inner.Newton(), GAUSS_NEWTON, TRUST_REGION):
        found = jax.jit(lambda h, s=solver: unrolled.run(problem, s, theta, h, None).grad)(theta)
        np.testing.assert_allclose(found, [1.0, 2.0, 3.0], rtol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [inner.LevenbergMarquardt(), GAUSS_NEWTON, TRUST_REGION, inner.Newton()],
    ids=["damped", "Gauss–Newton", "trust region", "Newton"],
)
def test_a_wrong_derivative_ends_as_stagnated(x64, solver):
    """The slope of r = x − h has the wrong sign: no step gains what the model says."""
    wrong = bl.Problem(residuals=lambda x, h, d: jax.lax.stop_gradient(2 * (x - h)) - (x - h))
    found = solver.solve(wrong, jnp.array([0.7, -0.3]), jnp.array(1.0), None)
    assert status_of(found) is Status.STAGNATED
    np.testing.assert_allclose(found.params, [0.7, -0.3], rtol=1e-6)


def test_a_time_step_that_is_too_long_does_not_pass(x64):
    stiff = bl.Problem(lambda x, h, d: h * jnp.sum(x**2) / 2)
    found = inner.FIRE(dt=1.0, max_steps=500).solve(stiff, jnp.ones(2), jnp.array(1e4), None)
    assert status_of(found) in (Status.NON_FINITE, Status.MAX_STEPS)
    assert status_of(inner.FIRE().solve(stiff, jnp.ones(2), jnp.array(1e4), None)) is Status.CONVERGED


def test_a_loss_without_a_minimum_does_not_pass(x64):
    concave = bl.Problem(lambda x, h, d: -jnp.sum(x**4) + h * jnp.sum(x))
    found = inner.TrustRegion().solve(concave, jnp.ones(3), jnp.array(1.0), None)
    assert status_of(found) in (Status.NON_FINITE, Status.MAX_STEPS, Status.STAGNATED)


def test_refusals_say_what_is_missing():
    plain = bl.Problem(lambda x, h, d: jnp.sum(x**2))
    with pytest.raises(
        ValueError, match=r"inner\.LevenbergMarquardt needs residuals, and this one has no Problem\.res"
    ):
        inner.LevenbergMarquardt().check(plain)
    proximal = bl.Problem(residuals=rosenbrock, prox=lambda x, h, d, step: x)
    for solver in (inner.LevenbergMarquardt(), inner.TrustRegion(), inner.FIRE()):
        name = type(solver).__name__
        with pytest.raises(ValueError, match=rf"inner\.{name} needs a smooth unconstrained .* has Problem\.prox"):
            solver.check(proximal)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inner.LevenbergMarquardt(damping=-1.0), r"inner\.LevenbergMarquardt: damping must not be negative"),
        (lambda: inner.TrustRegion(radius=0.0), r"inner\.TrustRegion: radius must be positive"),
        (lambda: inner.FIRE(dt=0.0), r"inner\.FIRE: dt must be positive"),
        (lambda: inner.FIRE(dt=1.0, dt_max=0.5), r"inner\.FIRE: dt must not exceed dt_max"),
        (lambda: inner.FIRE(f_inc=0.9), r"inner\.FIRE needs f_inc ≥ 1"),
        (lambda: inner.FIRE(alpha=1.5), r"inner\.FIRE needs .* 0 ≤ alpha ≤ 1"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
