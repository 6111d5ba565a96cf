"""The engine: derivatives of solutions, in every mode, against closed forms, differences and unrolling.

The solvers are made impossible to differentiate (callbacks into NumPy, or plain NumPy). The systems are nonsymmetric and
∂₂F is rectangular, so that a flipped sign or a dropped transpose shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import differences

import bilevel as bl

pytestmark = pytest.mark.slice(9)

N, P = 5, 3
RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(20, N)), RNG.normal(size=20)
PENALTIES = np.linspace(0.5, 2.0, N)
MATRIX = RNG.normal(size=(N, N)) + 4 * np.eye(N)  # nonsymmetric
MIXING = RNG.normal(size=(N, P))  # rectangular
THETA = np.array([0.3, -0.7, 1.1])


def close(actual, expected, rtol):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error <= rtol, f"relative error {error:.2e}"


def ridge_loss(x, theta, features, y):
    return jnp.sum((features @ x - y) ** 2) / 2 + jnp.sum(theta * x**2) / 2


def ridge_closed(theta, features, y):
    return jnp.linalg.solve(features.T @ features + jnp.diag(theta), features.T @ y)


def ridge_numpy(theta, features, y):
    theta, features, y = map(np.asarray, (theta, features, y))
    return np.linalg.solve(features.T @ features + np.diag(theta), features.T @ y).astype(y.dtype)


def ridge_callback(init, theta, features, y):
    shape = jax.ShapeDtypeStruct(theta.shape, y.dtype)
    return jax.pure_callback(ridge_numpy, shape, theta, features, y, vmap_method="sequential")


def smooth(x, theta):
    """A nonlinear F with nonsymmetric ∂₁F and rectangular ∂₂F: M x + 0.1 x³ − C sin(θ)."""
    return jnp.asarray(MATRIX) @ x + 0.1 * x**3 - jnp.asarray(MIXING) @ jnp.sin(theta)


def smooth_numpy(theta):
    x = np.zeros(N)
    for _ in range(50):
        residual = MATRIX @ x + 0.1 * x**3 - MIXING @ np.sin(np.asarray(theta))
        x = x - np.linalg.solve(MATRIX + np.diag(0.3 * x**2), residual)
    return x


def smooth_callback(init, theta):
    return jax.pure_callback(smooth_numpy, jax.ShapeDtypeStruct((N,), theta.dtype), theta, vmap_method="sequential")


def smooth_unrolled(theta):
    """The same root by Newton steps that JAX differentiates through."""
    x = jnp.zeros(N)
    for _ in range(12):
        x = x - jnp.linalg.solve(jax.jacobian(smooth)(x, theta), smooth(x, theta))
    return x


TRANSFORMS = {
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "grad of grad": lambda f: jax.grad(lambda t: jnp.sum(jax.grad(lambda s: jnp.sum(f(s) ** 2))(t) ** 2)),
    "jit jacfwd": lambda f: jax.jit(jax.jacfwd(f)),
    "jit jacrev": lambda f: jax.jit(jax.jacrev(f)),
    "jit hessian": lambda f: jax.jit(jax.hessian(f)),
}


def ridge_plain_numpy(init, theta, features, y):
    return ridge_numpy(theta, features, y)


@pytest.mark.parametrize(
    ("transform", "solve"),
    [(transform, ridge_callback) for transform in TRANSFORMS]
    + [(transform, ridge_plain_numpy) for transform in ("jacfwd", "jacrev", "hessian")],
)
def test_ridge_matches_the_closed_form(x64, transform, solve):
    solver = bl.custom_root(jax.grad(ridge_loss))(solve)
    operate = TRANSFORMS[transform]
    got = operate(lambda theta: solver(None, theta, FEATURES, TARGETS))(jnp.asarray(PENALTIES))
    close(got, jax.jit(operate(lambda theta: ridge_closed(theta, FEATURES, TARGETS)))(jnp.asarray(PENALTIES)), 1e-9)


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "hessian"])
def test_ridge_in_single_precision(transform):
    arrays = [jnp.asarray(a, jnp.float32) for a in (PENALTIES, FEATURES, TARGETS)]
    solver = bl.custom_root(jax.grad(ridge_loss))(ridge_callback)
    got = jax.jit(TRANSFORMS[transform](lambda theta: solver(None, theta, *arrays[1:])))(arrays[0])
    assert got.dtype == jnp.float32
    close(got, jax.jit(TRANSFORMS[transform](lambda theta: ridge_closed(theta, *arrays[1:])))(arrays[0]), 1e-4)


@pytest.mark.parametrize(
    ("transform", "linear"),
    [(transform, bl.linear.Auto()) for transform in ("jacfwd", "jit jacrev", "hessian", "reverse over reverse")]
    + [(transform, bl.linear.GMRES(rtol=1e-12)) for transform in ("jit jacfwd", "jit jacrev", "jit hessian")],
)
def test_nonsymmetric_root_matches_unrolling(x64, transform, linear):
    solver = bl.custom_root(smooth, solve=linear)(smooth_callback)
    operate, theta = TRANSFORMS[transform], jnp.asarray(THETA)
    close(operate(lambda t: solver(None, t))(theta), jax.jit(operate(smooth_unrolled))(theta), 1e-8)


def test_nonsymmetric_root_matches_differences(x64):
    solver = bl.custom_root(smooth)(smooth_callback)
    close(jax.jacrev(solver, argnums=1)(None, jnp.asarray(THETA)), differences(smooth_numpy, THETA), 1e-8)
    hessian = jax.jit(jax.hessian(lambda t: jnp.sum(solver(None, t) ** 3)))(jnp.asarray(THETA))
    gradient = jax.jit(jax.grad(lambda t: jnp.sum(solver(None, t) ** 3)))
    close(hessian, differences(lambda t: gradient(jnp.asarray(t)), THETA), 1e-7)


def test_every_argument_is_differentiated(x64):
    solver = bl.custom_root(jax.grad(ridge_loss))(ridge_callback)
    args = tuple(map(jnp.asarray, (PENALTIES, FEATURES, TARGETS)))
    reverse, forward = (jax.jit(f(solver, argnums=(1, 2, 3)))(None, *args) for f in (jax.jacrev, jax.jacfwd))
    for *found, expected in zip(
        reverse, forward, jax.jit(jax.jacrev(ridge_closed, argnums=(0, 1, 2)))(*args), strict=True
    ):
        for got in found:
            close(got, expected, 1e-9)


@pytest.mark.parametrize("operate", [jax.grad, lambda f: jax.jit(jax.grad(f)), jax.hessian, jax.jacfwd])
def test_closures_are_differentiated(x64, operate):
    def implicit(theta):
        @bl.custom_root(lambda x, y: jax.grad(ridge_loss)(x, theta, jnp.asarray(FEATURES), y))
        def solver(init, y):
            return ridge_callback(init, theta, jnp.asarray(FEATURES), y)

        return jnp.sum(solver(None, jnp.asarray(TARGETS)) ** 3)

    def closed(theta):
        return jnp.sum(ridge_closed(theta, FEATURES, TARGETS) ** 3)

    close(operate(implicit)(jnp.asarray(PENALTIES)), jax.jit(operate(closed))(jnp.asarray(PENALTIES)), 1e-9)


def test_vmap_of_derivatives(x64):
    solver = bl.custom_root(jax.grad(ridge_loss))(ridge_callback)
    batch = jnp.stack([jnp.asarray(PENALTIES), 2 * jnp.asarray(PENALTIES), 3 * jnp.asarray(PENALTIES)])

    def operated(solution):
        ways = [jax.vmap(operate(solution)) for operate in (jax.jacfwd, jax.jacrev, jax.hessian)]
        return jax.jit(lambda batch: [way(batch) for way in (*ways, jax.jacrev(jax.vmap(solution)))])(batch)

    found = operated(lambda theta: solver(None, theta, jnp.asarray(FEATURES), jnp.asarray(TARGETS)))
    for got, expected in zip(found, operated(lambda theta: ridge_closed(theta, FEATURES, TARGETS)), strict=True):
        close(got, expected, 1e-9)


def test_pytrees_with_coupled_leaves_and_scalars(x64):
    """x = {a: (5,), b: ()}: the solution of one linear system cut in two; θ has leaves of mixed shapes."""
    matrix = jnp.asarray(RNG.normal(size=(N + 1, N + 1)) + 4 * np.eye(N + 1))

    def flat(x):
        return jnp.append(x["a"], x["b"])

    def rhs(theta):
        return jnp.append(theta["u"] * jnp.arange(1.0, N + 1), jnp.sum(theta["v"]))

    def condition(x, theta):
        residual = matrix @ flat(x) - rhs(theta)
        return {"a": residual[:N], "b": residual[N]}

    def closed(theta):
        x = jnp.linalg.solve(matrix, rhs(theta))
        return {"a": x[:N], "b": x[N]}

    @bl.custom_root(condition)
    def solver(init, theta):
        return jax.lax.stop_gradient(closed(theta))

    theta = {"u": jnp.array(1.5), "v": jnp.asarray(RNG.normal(size=(2, 2)))}

    def operated(solution):
        return jax.jit(lambda t: [operate(solution)(t) for operate in (jax.jacfwd, jax.jacrev, jax.hessian)])(theta)

    found, expected = operated(lambda t: solver(None, t)), operated(closed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_integer_boolean_and_key_arguments(x64):
    def scaled(theta, key, power, flip):
        noise = jax.random.uniform(key, (N,), minval=1.0, maxval=2.0)
        return jnp.where(flip, -1.0, 1.0) * noise * theta**power

    @bl.custom_root(lambda x, theta, key, power, flip: 2.0 * x - scaled(theta, key, power, flip))
    def solver(init, theta, key, power, flip):
        return jax.lax.stop_gradient(scaled(theta, key, power, flip) / 2)

    keys, powers = jax.random.split(jax.random.key(1), 3), jnp.array([1, 2, 3])

    def implicit(theta, key, power):
        return jnp.sum(solver(None, theta, key, power, True) ** 2)

    def closed(theta, key, power):
        return jnp.sum((scaled(theta, key, power, True) / 2) ** 2)

    got = jax.vmap(jax.jit(jax.hessian(implicit)), (None, 0, 0))(1.3, keys, powers)
    close(got, jax.vmap(jax.hessian(closed), (None, 0, 0))(1.3, keys, powers), 1e-12)


def test_fixed_point_is_the_root_of_its_residual(x64):
    @bl.custom_fixed_point(lambda x, theta: x - 0.1 * smooth(x, theta))
    def solver(init, theta):
        return smooth_callback(init, theta)

    expected = jax.jit(jax.jacrev(smooth_unrolled))(jnp.asarray(THETA))
    for operate in (jax.jacrev, jax.jacfwd):
        close(operate(solver, 1)(None, jnp.asarray(THETA)), expected, 1e-8)


@pytest.mark.parametrize(
    "solve", [None, bl.linear.GMRES(rtol=1e-12), lambda mv, b: jax.scipy.sparse.linalg.gmres(mv, b, tol=1e-12)[0]]
)
def test_root_vjp_and_root_jvp(x64, solve):
    theta = jnp.asarray(THETA)
    sol, jacobian = jnp.asarray(smooth_numpy(theta)), jax.jit(jax.jacrev(smooth_unrolled))(theta)
    cotangent, tangent = jnp.asarray(RNG.normal(size=N)), jnp.asarray(RNG.normal(size=P))
    (pulled,) = bl.root_vjp(smooth, sol, (theta,), cotangent, solve=solve)
    close(pulled, cotangent @ jacobian, 1e-8)
    close(bl.root_jvp(smooth, sol, (theta,), (tangent,), solve=solve), jacobian @ tangent, 1e-8)


def test_root_vjp_gives_a_cotangent_per_argument(x64):
    args = tuple(map(jnp.asarray, (PENALTIES, FEATURES, TARGETS)))
    cotangent = jnp.asarray(RNG.normal(size=N))
    got = bl.root_vjp(jax.grad(ridge_loss), ridge_closed(*args), args, cotangent)
    expected = jax.jit(lambda *args: jax.vjp(ridge_closed, *args)[1](cotangent))(*args)
    for a, b in zip(got, expected, strict=True):
        close(a, b, 1e-9)


def test_aux_is_returned_and_its_derivative_is_nan(x64):
    @bl.custom_root(jax.grad(ridge_loss), has_aux=True)
    def solver(init, theta, features, y):
        return ridge_closed(theta, features, y), {"loss": jnp.sum(theta), "steps": 3, "note": "direct"}

    def run(theta):
        return solver(None, theta, FEATURES, TARGETS)

    theta = jnp.asarray(PENALTIES)
    assert run(theta)[1]["note"] == "direct"
    assert float(run(theta)[1]["loss"]) == PENALTIES.sum()
    close(jax.jacrev(lambda t: run(t)[0])(theta), jax.jacrev(lambda t: ridge_closed(t, FEATURES, TARGETS))(theta), 1e-9)
    assert np.isnan(jax.grad(lambda t: run(t)[1]["loss"])(theta)).all()
    assert np.isnan(jax.jvp(lambda t: run(t)[1]["loss"], (theta,), (theta,))[1])


def test_aux_of_a_closure_has_a_nan_derivative_too(x64):
    def loss(theta):
        @bl.custom_root(lambda x, y: x - theta * y, has_aux=True)
        def solver(init, y):
            return jax.lax.stop_gradient(theta * y), theta * 2

        return solver(None, 3.0)[1]

    assert np.isnan(jax.grad(loss)(2.0))


def test_ignored_aux_costs_no_linear_solve(x64):
    calls = []

    def counted(matvec, b):
        calls.append(1)
        return jnp.linalg.solve(jax.jacobian(matvec)(b), b)

    @bl.custom_root(smooth, has_aux=True, solve=counted)
    def solver(init, theta):
        return smooth_callback(init, theta), jnp.sum(theta)

    text = str(jax.make_jaxpr(jax.grad(lambda t: jnp.sum(solver(None, t)[0])))(jnp.asarray(THETA)))
    without = bl.custom_root(smooth, solve=counted)(smooth_callback)
    plain = str(jax.make_jaxpr(jax.grad(lambda t: jnp.sum(without(None, t))))(jnp.asarray(THETA)))
    assert calls
    assert text.count(" lu") == plain.count(" lu")


def test_the_start_has_derivative_zero(x64):
    solver = bl.custom_root(smooth)(smooth_callback)
    assert not np.any(jax.jacrev(solver, argnums=0)(jnp.ones(N), jnp.asarray(THETA)))


@pytest.mark.parametrize("operate", [jax.jacrev, jax.jacfwd])
def test_a_linear_solve_that_fails_makes_the_derivative_nan(x64, operate):
    crippled = bl.linear.CG(max_steps=1, rtol=1e-12)
    theta = jnp.asarray(PENALTIES)

    def jacobian(**kwargs):
        solver = bl.custom_root(jax.grad(ridge_loss), solve=crippled, **kwargs)(ridge_callback)
        return operate(lambda t: solver(None, t, jnp.asarray(FEATURES), jnp.asarray(TARGETS)))(theta)

    assert np.isnan(jacobian()).any()
    ignored = jacobian(on_failure="ignore")
    exact = jax.jacrev(lambda t: ridge_closed(t, FEATURES, TARGETS))(theta)
    assert np.isfinite(ignored).all()
    assert not np.allclose(ignored, exact, rtol=1e-3)


def test_a_users_solve_is_judged_by_its_residual(x64):
    solver = bl.custom_root(smooth, solve=lambda matvec, b: 0.1 * b)(smooth_callback)
    assert np.isnan(jax.jacrev(solver, 1)(None, jnp.asarray(THETA))).all()


def test_a_plain_call_is_the_users_call():
    seen = []

    @bl.custom_root(lambda x, theta: x - theta)
    def solver(init, theta):
        """Doc."""
        seen.append((init, theta))
        return np.asarray(theta)

    theta = np.ones(2, np.float32)
    solver("start", theta)
    assert seen[0][0] == "start"
    assert seen[0][1] is theta
    assert solver.__doc__ == "Doc."
    assert len(seen) == 1


def test_wrong_uses_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="on_failure must be 'nan' or 'ignore'"):
        bl.custom_root(smooth, on_failure="zero")
    with pytest.raises(TypeError, match=r"solve must be a solver of bilevel\.linear"):
        bl.custom_root(smooth, solve=3)
    with pytest.raises(ValueError, match="value of the optimality condition must have the structure and shapes"):
        bl.custom_root(lambda x: x[:2])(lambda init: jnp.ones(3))(None)
    with pytest.raises(TypeError, match="must return floating-point arrays"):
        bl.custom_root(lambda x: x)(lambda init: jnp.arange(3))(None)
    with pytest.raises(TypeError, match=r"must return \(solution, aux\)"):
        bl.custom_root(lambda x: x, has_aux=True)(lambda init: jnp.ones(3))(None)
    with pytest.raises(ZeroDivisionError):
        bl.custom_root(lambda x: x)(lambda init: 1 / 0)(None)


def test_the_dtype_follows_the_inner_variable(x64):
    @bl.custom_root(lambda x, theta: x - theta)
    def solver(init, theta):
        return jax.lax.stop_gradient(theta).astype(jnp.float32)

    jacobian = jax.jacrev(solver, 1)(None, jnp.ones(2, jnp.float64))
    assert jacobian.dtype == jnp.float64  # of θ; the system itself was solved in float32
    close(jacobian, np.eye(2), 1e-6)
    assert jax.jacfwd(solver, 1)(None, jnp.ones(2, jnp.float64)).dtype == jnp.float32


def test_works_under_strict_promotion(strict):
    solver = bl.custom_root(smooth)(smooth_callback)
    assert np.isfinite(jax.jit(jax.jacrev(solver, 1))(None, jnp.asarray(THETA))).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("derivative", [jax.grad, jax.hessian, jax.jacfwd, lambda f: jax.grad(jax.grad(f))])
def test_a_block_of_the_condition_may_not_depend_on_the_argument(derivative, power):
    """With the power 1, both blocks are linear in the argument."""

    @bl.custom_root(lambda x, theta: {"a": x["a"] - theta**power, "b": x["b"] + x["a"] - 1.0})
    def solver(init, theta):
        return {"a": theta**power, "b": 1.0 - theta**power}

    def value(theta):
        x = solver(None, theta)
        return x["a"] * x["b"] ** 2

    def closed(theta):
        return theta**power * (1 - theta**power) ** 2

    np.testing.assert_allclose(derivative(value)(1.7), jax.jit(derivative(closed))(1.7), rtol=1e-12)
