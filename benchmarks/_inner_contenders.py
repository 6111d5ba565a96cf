"""The contenders of `inner.py` but those of jaxopt.

A family maps an instance to its settings, and each setting a tolerance to a compiled solve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from _inner_problems import Instance

import bilevel as bl

Solve = Callable[[], tuple[Any, Any]]  # () -> params, iterations
Settings = dict[str, Callable[[float], Solve]]
Family = Callable[[Instance], Settings]
MAX_STEPS = 5000


def compiled(solve: Callable, *args: Any) -> Callable[[float], Solve]:
    """From solve(tol, *args), compiled once: everything that depends on the data is an argument, nothing a constant."""
    args = jax.tree.map(jnp.asarray, args)
    function = jax.jit(solve)
    return lambda tol: lambda: jax.block_until_ready(function(tol, *args))


def together(**families: Family) -> Family:
    """The settings of several families, of which the fastest counts."""
    return lambda instance: {
        f"{name} {setting}".strip(): make
        for name, family in families.items()
        for setting, make in family(instance).items()
    }


@functools.cache
def ours(solver: Callable, **settings: Any) -> Family:
    """One of our solvers. What it prepares from the data, once for all outer steps, is prepared beforehand."""

    def family(instance):
        def make(tol):
            inner = solver(rtol=tol, **settings)
            prepare = jax.jit(lambda hparams, data: inner.prepare(bl.At(instance.problem, hparams, data)))
            prepared = prepare(instance.hparams, instance.data)

            def solve(tol, start, hparams, data, prepared):
                del tol  # a setting of the solver, so that each has a program of its own
                found = inner.solve_at(bl.At(instance.problem, hparams, data, prepared), start)
                return found.params, found.steps

            return compiled(solve, instance.start, instance.hparams, instance.data, prepared)(tol)

        return {"": make}

    return family


def optimistix(kind: str, **solvers: Callable) -> Family:
    """Solvers of optimistix: `"minimise"` the loss, or `"root_find"` a zero of its gradient."""

    def family(instance):
        loss = instance.problem.parts.inner_loss
        function = jax.grad(loss) if kind == "root_find" else loss

        def setting(solver):
            def solve(tol, start, hparams, data):
                found = getattr(optx, kind)(
                    lambda params, args: function(params, *args),
                    solver(rtol=tol, atol=tol),
                    start,
                    (hparams, data),
                    max_steps=MAX_STEPS,
                    throw=False,
                )
                return found.value, found.stats["num_steps"]

            return compiled(solve, instance.start, instance.hparams, instance.data)

        return {name: setting(solver) for name, solver in solvers.items()}

    return family


@functools.cache
def lasso_by_numpy(package: str) -> Family:
    """`Lasso` of celer, skglm or scikit-learn, on columns in Fortran order. numba compiles at the first call."""

    def family(instance):
        import importlib

        features, targets, penalty = instance.parts["numpy"]
        module = importlib.import_module("sklearn.linear_model" if package == "sklearn" else package)

        def make(tol):
            model = module.Lasso(alpha=penalty, fit_intercept=False, tol=tol)

            def solve():
                model.fit(features, targets)
                return model.coef_, np.max(model.n_iter_)

            return solve

        return {"": make}

    return family
