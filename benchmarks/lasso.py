"""Compare forms of the linear system in the hypergradient of a lasso with one penalty per feature.

The data are unnormalized (the scales of the columns differ widely), with 1000 features, and the penalty leaves 30 coefficients
that are not zero; float64. The solution is polished on its support, so that only the linear systems differ:

- gathered: the symmetric system on the support, padded to 32 unknowns (`ProximalGradient(support=32)`);
- masked: the symmetric system of full size, masked to the support, which needs no bound on the support;
- full: (I − ∂T)/η of full size, not symmetric, the system without `separable=True`.

`linear.Auto` chooses the solver of each. Errors are relative to the closed form on the support.

Run: python benchmarks/lasso.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel import optimality
from bilevel.operators.prox import prox_lasso

SAMPLES, FEATURES, SUPPORT = 5000, 1000, 30


def squares(prediction, hparams, data):
    fit = prediction - data[1]
    return jnp.vdot(fit, fit) / 2


def prox(x, hparams, data, step):
    return prox_lasso(x, jnp.exp(hparams), step)


def make_data():
    """Features with column scales over 1.5 decades, and targets of 40 true coefficients."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SAMPLES, FEATURES)) * np.logspace(0, 1.5, FEATURES)[rng.permutation(FEATURES)]
    truth = np.zeros(FEATURES)
    truth[rng.choice(FEATURES, 40, replace=False)] = rng.normal(size=40)
    return features, features @ truth + rng.normal(size=SAMPLES)


def solve(features, targets):
    """The log penalty on the lasso path with a support of size `SUPPORT`, and the solution there, polished."""
    from sklearn.linear_model import lasso_path

    grid = np.abs(features.T @ targets).max() / SAMPLES * np.geomspace(1, 1e-3, 400)
    penalties, path, _ = lasso_path(features, targets, alphas=grid, tol=1e-10, max_iter=100_000)
    index = int(np.argmax((path != 0).sum(axis=0) == SUPPORT))
    support = path[:, index] != 0
    assert support.sum() == SUPPORT, "no penalty on the grid has this support"
    penalty = penalties[index] * SAMPLES
    x = np.zeros(FEATURES)
    chosen = features[:, support]
    signs = np.sign(path[support, index])
    x[support] = np.linalg.solve(chosen.T @ chosen, chosen.T @ targets - penalty * signs)
    assert (np.sign(x[support]) == signs).all()
    return np.log(penalty), x


def closed_form(features, log_penalty, x, cotangent):
    """d⟨w, x⟩/d log λ_i = −λ sign(x_i) [(X_SᵀX_S)⁻¹ w_S]_i on the support, and 0 elsewhere."""
    support = x != 0
    chosen = features[:, support]
    gradient = np.zeros(FEATURES)
    inverse = np.linalg.solve(chosen.T @ chosen, cotangent[support])
    gradient[support] = -np.exp(log_penalty) * np.sign(x[support]) * inverse
    return gradient


def contender(separable, support):
    """Make a function (x, hparams, data, w) -> (hypergradient, status, products with the system)."""
    problem = bl.Problem(
        inner=bl.Minimization(
            datafit=squares,
            design=lambda hparams, data: data[0],
            prox=prox,
            separable=separable,
            lipschitz=lambda hparams, data: data[2],
        ),
        optimality=optimality.ProximalGradient(support=support),
    )
    function = optimality.bind(problem)

    @jax.jit
    def run(x, hparams, data, cotangent):
        found = function.system(x, hparams, data).solve_transposed(bl.linear.Auto(), cotangent)
        _, pull = jax.vjp(lambda hparams: function(x, hparams, data), hparams)
        return -pull(found.value)[0], found.status, found.matvecs

    return run


def seconds(function, *args):
    begun = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="paired repetitions (default: 9)")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    features, targets = make_data()
    log_penalty, x = solve(features, targets)
    cotangent = np.random.default_rng(1).normal(size=FEATURES)
    expected = closed_form(features, log_penalty, x, cotangent)
    data = (features, targets, np.linalg.norm(features, 2) ** 2)
    args = jax.tree.map(jnp.asarray, (x, np.full(FEATURES, log_penalty), data, cotangent))

    contenders = {"gathered": contender(True, 32), "masked": contender(True, None), "full": contender(False, None)}
    results = {name: jax.block_until_ready(run(*args)) for name, run in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, run in contenders.items():
            times[name].append(seconds(run, *args))

    print(f"{FEATURES} features, support {SUPPORT}, penalty {np.exp(log_penalty):.4g}")
    print(f"  {'':10}{'ms':>9}{'times gathered':>24}{'gradient error':>16}{'products':>10}  status")
    for name, (gradient, status, matvecs) in results.items():
        ratio = np.array(times[name]) / np.array(times["gathered"])
        low, middle, high = np.percentile(ratio, [5, 50, 95])
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        print(
            f"  {name:10}{1e3 * np.median(times[name]):9.2f}{f'{middle:.1f} [{low:.1f}, {high:.1f}]':>24}{error:16.1e}"
            f"{int(matvecs):10d}  {bl.Status(int(status)).word}"
        )


if __name__ == "__main__":
    main()
