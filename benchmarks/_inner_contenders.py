"""The contenders of `inner.py` other than jaxopt's.

A family maps a problem instance to its settings by name. Each setting maps a tolerance to a compiled solve.
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
    """Compile solve(tol, *args) once. Everything that depends on the data is an argument, so that nothing is a constant."""
    args = jax.tree.map(jnp.asarray, args)
    function = jax.jit(solve)
    return lambda tol: lambda: jax.block_until_ready(function(tol, *args))


def together(**families: Family) -> Family:
    """The settings of several families as one family, of which the fastest setting counts."""
    return lambda instance: {
        f"{name} {setting}".strip(): make
        for name, family in families.items()
        for setting, make in family(instance).items()
    }


@functools.cache
def ours(solver: Callable, **settings: Any) -> Family:
    """One of our solvers. Its preparation, which depends on the data alone, is done beforehand."""

    def family(instance):
        def make(tol):
            inner = solver(rtol=tol, **settings)
            prepare = jax.jit(lambda hparams, data: inner.prepare(bl.At(instance.problem, hparams, data)))
            prepared = prepare(instance.hparams, instance.data)

            def solve(tol, start, hparams, data, prepared):
                del tol  # it is a setting of the solver: each tolerance has its own program
                found = inner.solve_at(bl.At(instance.problem, hparams, data, prepared), start)
                return found.params, found.steps

            return compiled(solve, instance.start, instance.hparams, instance.data, prepared)(tol)

        return {"": make}

    return family


def optimistix(kind: str, **solvers: Callable) -> Family:
    """Solvers of optimistix, which `"minimise"` the loss or `"root_find"` a zero of its gradient."""

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
    """`Lasso` of celer, skglm or scikit-learn, on an array in Fortran order. numba compiles at the first call."""

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
