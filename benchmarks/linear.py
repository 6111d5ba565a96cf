"""Compare linear solves.

1. A full Jacobian: one `solve_block` of 50 right-hand sides and 50 calls of `solve`, by CG on the Hessian of a
   ridge-regularized logistic regression. Products go through its features, as Hessian-vector products do, or use the formed
   matrix. Both ways are compiled and stop at the same tolerance for each right-hand side.
2. One solve: our CG and lineax's, whose rtol and atol are our rtol, with ‖b‖ = 1. With its test relative to each entry alone,
   lineax might never stop.
3. One solve in float64: `Refined` (factored in float32, corrected in float64) and `Direct`.

Times are medians. Ratios are those of paired runs, with the interval from 5 % to 95 %.

Run: python benchmarks/linear.py [--sizes 500] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from bilevel import linear

COLUMNS = 50


def factors(size, dtype):
    """Features, shape (2 size, size), and weights of a logistic regression at a random point; the condition is about 1e3."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2 * size, size)) * np.logspace(0, -1.5, size)
    margin = features @ rng.normal(size=size)
    weight = 1 / (2 + 2 * np.cosh(margin))
    return jnp.asarray(features, dtype), jnp.asarray(weight, dtype)


def hessian(features, weight):
    """The Hessian with a ridge, shape (size, size)."""
    return features.T @ (weight[:, None] * features) + 0.5 * jnp.eye(features.shape[1], dtype=features.dtype)


def operator(matrix):
    """The operator of the formed matrix, or of (features, weight)."""
    if not isinstance(matrix, tuple):
        return linear.Operator(lambda v: matrix @ v, "positive_definite")
    features, weight = matrix
    return linear.Operator(lambda v: (weight * (features @ v)) @ features + 0.5 * v, "positive_definite")


@jax.jit
def block(matrix, columns):
    return linear.CG().solve_block(operator(matrix), columns)


@jax.jit
def single(matrix, b):
    return linear.CG().solve(operator(matrix), b)


@jax.jit
def direct(matrix, b):
    return linear.Direct().solve(operator(matrix), b)


@jax.jit
def refined(matrix, b):
    return linear.Refined().solve(operator(matrix), b)


@jax.jit
def lineax_cg(matrix, b):
    rtol = float(jnp.finfo(b.dtype).eps ** (2 / 3))
    structure = jax.ShapeDtypeStruct(b.shape, b.dtype)
    wrapped = lx.FunctionLinearOperator(lambda v: matrix @ v, structure, lx.positive_semidefinite_tag)
    found = lx.linear_solve(wrapped, b, lx.CG(rtol=rtol, atol=rtol), throw=False)
    return found.value, found.stats["num_steps"]


def one_by_one(matrix, columns):
    return [single(matrix, b) for b in columns]


def seconds(function, *args):
    begun = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - begun


def paired(first, second, repeats):
    """The median seconds of both, and the ratio second / first with its interval."""
    for _ in range(2):
        jax.block_until_ready((first(), second()))
    times = np.array([(seconds(first), seconds(second)) for _ in range(repeats)])
    low, middle, high = np.percentile(times[:, 1] / times[:, 0], [5, 50, 95])
    first_time, second_time = np.median(times, axis=0)
    return first_time, second_time, f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def row(name, size, dtype, times, note):
    first, second, ratio = times
    print(f"  {name:34}{size:6}{dtype:>9}{1e3 * first:10.2f}{1e3 * second:10.2f}{ratio:>24}  {note}", flush=True)


def compare(size, dtype, repeats):
    columns = jnp.asarray(np.random.default_rng(1).normal(size=(COLUMNS, size)), dtype)
    columns = columns / jnp.linalg.norm(columns, axis=1, keepdims=True)
    through_features = factors(size, dtype)
    matrix = hessian(*through_features)
    for name, form in (("features", through_features), ("matrix", matrix)):
        together, apart = block(form, columns), one_by_one(form, columns)
        assert bool(together.converged.all())
        assert all(bool(found.converged) for found in apart)
        steps = f"steps ≤ {int(together.steps.max())}, {max(int(found.steps) for found in apart)}"
        times = paired(lambda form=form: block(form, columns), lambda form=form: one_by_one(form, columns), repeats)
        row(f"block of {COLUMNS} / {COLUMNS} solves, {name}", size, dtype, times, steps)

    b = columns[0]
    value, theirs = lineax_cg(matrix, b)
    residual = float(jnp.linalg.norm(matrix @ value - b))
    mine = single(matrix, b)
    note = f"steps {int(mine.steps)}, {int(theirs)}; residual {float(mine.residual):.1e}, {residual:.1e}"
    times = paired(lambda: single(matrix, b), lambda: lineax_cg(matrix, b), repeats)
    row("our CG / lineax's CG", size, dtype, times, note)

    if dtype == "float64":
        found, exact = refined(matrix, b), direct(matrix, b)
        note = f"residual {float(found.residual):.1e}, {float(exact.residual):.1e}"
        times = paired(lambda: refined(matrix, b), lambda: direct(matrix, b), repeats)
        row("Refined / Direct", size, dtype, times, note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500], help="numbers of unknowns (default: 500)")
    parser.add_argument("--repeats", type=int, default=7, help="paired repetitions (default: 7)")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}; first / second, ratio = second over first")
    print(f"  {'':34}{'n':>6}{'dtype':>9}{'first ms':>10}{'second ms':>10}{'ratio [5 %, 95 %]':>24}")
    for dtype in ("float32", "float64"):
        for size in options.sizes:
            with jax.enable_x64(dtype == "float64"):
                compare(size, dtype, options.repeats)


if __name__ == "__main__":
    main()
