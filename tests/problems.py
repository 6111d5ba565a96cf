"""Small inner problems with known answers, shared by the suites."""

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.operators.projection import projection_non_negative, projection_simplex
from bilevel.operators.prox import prox_lasso

RNG = np.random.default_rng(3)
FEATURES, TARGETS = RNG.normal(size=(30, 8)), RNG.normal(size=30)
HELD_OUT, HELD_OUT_TARGETS = RNG.normal(size=(12, 8)), RNG.normal(size=12)


def data(dtype="float64"):
    arrays = {"train": (FEATURES, TARGETS), "validation": (HELD_OUT, HELD_OUT_TARGETS)}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)


def validation_loss(params, hparams, data):
    features, targets = data["validation"]
    return jnp.sum((features @ params - targets) ** 2) / 2


def least_squares(params, hparams, data):
    features, targets = data["train"]
    fit = features @ params - targets
    return jnp.vdot(fit, fit) / 2


def ridge_loss(params, hparams, data):
    return least_squares(params, hparams, data) + jnp.vdot(jnp.exp(hparams), params**2) / 2


def logistic_loss(params, hparams, data):
    features, targets = data["train"]
    labels = jnp.sign(targets)
    return jnp.sum(jnp.logaddexp(jnp.zeros_like(labels), -labels * (features @ params))) + jnp.vdot(
        jnp.exp(hparams), params**2
    )


def scaled_simplex_loss(params, hparams, data):
    """Least squares towards a point that depends on θ, on the simplex."""
    return least_squares(params, hparams, data) / 10 - jnp.vdot(hparams, params)


ridge = bl.Problem(ridge_loss, validation_loss)
logistic = bl.Problem(logistic_loss, validation_loss)
lasso = bl.Problem(
    least_squares,
    validation_loss,
    prox=lambda x, hparams, data, step: prox_lasso(x, jnp.exp(hparams), step),
    separable=True,
)
non_negative = bl.Problem(
    ridge_loss, validation_loss, projection=lambda x, hparams, data: projection_non_negative(x), polyhedral=True
)
simplex = bl.Problem(
    scaled_simplex_loss, validation_loss, projection=lambda x, hparams, data: projection_simplex(x), polyhedral=True
)
ALL = {"ridge": ridge, "logistic": logistic, "lasso": lasso, "non_negative": non_negative, "simplex": simplex}


def hparams(name, dtype="float64"):
    """A generic point: some coordinates active, some not."""
    return jnp.asarray(1.0 if name == "lasso" else np.linspace(-1.0, 1.5, 8), dtype)


def start(dtype="float64"):
    return jnp.full(8, 1 / 8, dtype)


def ridge_solution(theta):
    return jnp.linalg.solve(FEATURES.T @ FEATURES + jnp.diag(jnp.exp(theta)), FEATURES.T @ TARGETS)


def status_of(found):
    return bl.Status(int(found.status))


def differences(fun, x, step=1e-4):
    """The derivative at an array by central differences, Richardson-extrapolated: error O(h⁴)."""
    x = np.asarray(x)

    def along(way, h):
        return (np.asarray(fun(x + h * way)) - np.asarray(fun(x - h * way))) / (2 * h)

    found = [(4 * along(way, step) - along(way, 2 * step)) / 3 for way in np.eye(x.size).reshape(-1, *x.shape)]
    return np.stack(found, axis=-1).reshape(found[0].shape + x.shape)
