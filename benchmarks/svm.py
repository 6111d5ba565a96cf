"""Compare one outer step of the multiclass SVM with jaxopt's.

An outer step is an inner solve from the uniform start and a hypergradient, on the paper's objective and synthetic data
(m = 700, m_val = 200, k = 5, 10 % informative features). The contenders are:

- ours: FISTA with restart (on the Gram matrix when p > m/2), the adjoint on the active face, and default tolerances;
- ours, loose: the same with rtol 1e-4 for both solves, about as accurate as the contenders below;
- paper: jaxopt's ProjectedGradient as in the paper, at most 2500 iterations, tol 1e-5, a fixed step 5e-4, and its implicit
  differentiation (the projected-gradient map, CG on the normal equations, at most 2500 iterations);
- best: jaxopt's best case, its line search (stepsize=0) or the step 1/L, whichever is faster, with the loosest tolerance on a
  grid that gives the validation loss to 1e-3.

Errors are relative to a float64 reference solved to 1e-13.

Run: python benchmarks/svm.py [--features 100 1000 10000] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.tasks import svm

CLASSES, TRAIN, VALIDATION = 5, 700, 200


def make_problem(features):
    """Training and validation arrays, float64."""
    split = svm.SVM(data="synthetic", features=features).tables(seed=0)
    one_hot = np.eye(CLASSES)
    train, validation = split.train, split.validation
    return (train.features, one_hot[train.targets], validation.features, one_hot[validation.targets])


def ours(arrays, dtype, inner_rtol, linear):
    """Make a function log θ -> (outer loss, hypergradient, dual, status)."""
    x_tr, y_tr, x_val, y_val = arrays
    data = svm.make_data(x_tr, y_tr, x_val, y_val, dtype)
    inner = bl.inner.FISTA(rtol=inner_rtol, max_steps=100_000)
    estimator = bl.hypergrad.Implicit(linear=linear)
    start = jnp.full(arrays[1].shape, 1 / CLASSES, dtype)

    @jax.jit
    def step(start, hparams, data):
        found = estimator.run(svm.problem, inner, start, hparams, data)
        return found.outer_loss, found.grad, found.params, found.status

    return lambda lam: step(start, jnp.asarray(lam, dtype), data)


def jaxopt_step(arrays, stepsize, tol, maxiter=2500):
    """The same by jaxopt, on the paper's objective, which multiplies by X."""
    from jaxopt import ProjectedGradient, projection
    from jaxopt.linear_solve import solve_normal_cg

    x_tr, y_tr, x_val, y_val = (jnp.asarray(a, jnp.float32) for a in arrays)

    def primal(x, theta):
        return x_tr.T @ (y_tr - x) / theta

    def fun(x, theta):
        weights = primal(x, theta)
        return theta / 2 * jnp.vdot(weights, weights) + jnp.vdot(x, y_tr)

    solver = ProjectedGradient(
        fun=fun,
        projection=lambda x, _: jax.vmap(projection.projection_simplex)(x),
        stepsize=stepsize,
        maxiter=maxiter,
        tol=tol,
        implicit_diff=True,
        implicit_diff_solve=lambda matvec, b, **kw: solve_normal_cg(matvec, b, maxiter=2500, **kw),
    )
    start = jnp.full(y_tr.shape, 1 / CLASSES, jnp.float32)

    def outer(lam):
        theta = jnp.exp(lam)
        x = solver.run(start, hyperparams_proj=None, theta=theta).params
        fit = x_val @ primal(x, theta) - y_val
        return jnp.vdot(fit, fit) / 2, x

    step = jax.jit(jax.value_and_grad(outer, has_aux=True))

    def run(lam):
        (loss, x), grad = step(jnp.asarray(lam, jnp.float32))
        return loss, grad, x

    return run


def seconds(function, lam):
    """The wall time of one call, and its result."""
    begun = time.perf_counter()
    result = jax.block_until_ready(function(lam))
    return time.perf_counter() - begun, result


def errors(result, reference):
    """Relative errors of the outer loss and of the hypergradient."""
    pairs = zip(result[:2], reference[:2], strict=True)
    return tuple(abs(float(a) - float(b)) / abs(float(b)) for a, b in pairs)


def objective_gap(arrays, lam, x, reference):
    """The gap of the inner objective to the reference, in float64, relative to the reference."""
    gram = arrays[0] @ arrays[0].T

    def value(x):
        x = np.asarray(x, np.float64)
        residual = arrays[1] - x
        return np.vdot(residual, gram @ residual) / 2 / np.exp(lam) + np.vdot(x, arrays[1])

    return (value(x) - value(reference)) / abs(value(reference))


def best_case(arrays, lam, reference, eigenvalue):
    """jaxopt's fastest setting that gives the validation loss to 1e-3, or None."""
    found = []
    for name, stepsize in (("line search", 0.0), ("1/L", float(np.exp(lam)) / eigenvalue)):
        for tol in (1e0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5):
            step = jaxopt_step(arrays, stepsize, tol, maxiter=20_000)
            jax.block_until_ready(step(lam))
            elapsed, result = seconds(step, lam)
            if errors(result, reference)[0] <= 1e-3:
                found.append((elapsed, f"{name}, tol {tol:g}", step))
                break
    return min(found, key=lambda item: item[0]) if found else None


def compare(features, lam_shift, repeats):
    """Measure and print the rows of one problem size."""
    arrays = make_problem(features)
    with jax.enable_x64(True):
        reference_step = ours(arrays, jnp.float64, 1e-13, bl.linear.CG(rtol=1e-11))
        eigenvalue = float(np.linalg.norm(arrays[0], 2) ** 2)
        lam = float(np.log(eigenvalue) + lam_shift)
        reference = jax.tree.map(np.asarray, reference_step(lam))
        assert reference[3] == 0, "the reference did not converge"
    mine = ours(arrays, jnp.float32, 1e-6, bl.linear.Auto())
    loose = ours(arrays, jnp.float32, 1e-4, bl.linear.Auto(rtol=1e-4))
    contenders = {"ours": mine, "ours, loose": loose, "paper": jaxopt_step(arrays, 5e-4, 1e-5)}
    best = best_case(arrays, lam, reference, eigenvalue)
    if best is not None:
        contenders[f"best ({best[1]})"] = best[2]

    times: dict[str, list[float]] = {name: [] for name in contenders}
    results = {name: seconds(function, lam)[1] for name, function in contenders.items()}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds(function, lam)[0])

    begun = time.perf_counter()
    jax.block_until_ready(svm.make_data(*arrays, jnp.float32))
    once = 1e3 * (time.perf_counter() - begun)
    print(f"\np = {features}: our preparation (Gram matrix if used, largest eigenvalue), once per run: {once:.0f} ms")
    print(f"p = {features}, θ = {np.exp(lam):.4g}: outer loss {reference[0]:.6g}, hypergradient {reference[1]:.6g}")
    print(f"  {'':28}{'ms':>9}{'ratio [10 %, 90 %]':>22}{'loss err':>10}{'grad err':>10}{'inner gap':>11}")
    for name, result in results.items():
        ratio = np.array(times[name]) / np.array(times["ours"])
        low, middle, high = np.percentile(ratio, [10, 50, 90])
        loss_error, grad_error = errors(result, reference)
        gap = objective_gap(arrays, lam, result[2], reference[2])
        print(
            f"  {name:28}{1e3 * np.median(times[name]):9.1f}{f'{middle:.1f} [{low:.1f}, {high:.1f}]':>22}"
            f"{loss_error:10.1e}{grad_error:10.1e}{gap:11.1e}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[100, 1000, 10000], help="numbers of features, p")
    parser.add_argument("--lam-shifts", type=float, nargs="+", default=[0.0, -2.3], help="log θ − log λ_max(XXᵀ)")
    parser.add_argument("--repeats", type=int, default=7, help="paired repetitions (default: 7)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for features in options.features:
        for shift in options.lam_shifts:
            compare(features, shift, options.repeats)


if __name__ == "__main__":
    main()
