"""The contenders of `inner.py`. A family maps an instance to its settings, and each setting a tolerance to a compiled solve."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
from _inner_problems import Instance
from jaxopt import objective as jaxopt_objective
from jaxopt import projection as jaxopt_projection

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
            prepare = jax.jit(lambda hparams, data: inner.prepare(instance.problem, hparams, data))
            prepared = prepare(instance.hparams, instance.data)

            def solve(tol, start, hparams, data, prepared):
                del tol  # a setting of the solver, so that each has a program of its own
                found = inner.solve(instance.problem, start, hparams, data, prepared)
                return found.params, found.steps

            return compiled(solve, instance.start, instance.hparams, instance.data, prepared)(tol)

        return {"": make}

    return family


def _jaxopt(instance: Instance, solvers: dict[str, Callable], *args: Any) -> Settings:
    """Settings of jaxopt, each by the function that builds its solver from a tolerance and L."""

    def setting(build):
        def solve(tol, start, scale, *args):
            params, state = build(tol, scale).run(start, *args)
            return params, state.iter_num

        return compiled(solve, instance.start, instance.parts["L"], *args)

    return {name: setting(build) for name, build in solvers.items()}


def _steps(solver: Callable, functions: dict[str, Callable]) -> dict[str, Callable]:
    """Each function with jaxopt's line search and with the step 1/L."""

    def build(fun, known, tol, scale):
        stepsize = {"stepsize": (lambda _: 1 / scale) if known else 0.0}
        return solver(fun=fun, tol=tol, maxiter=MAX_STEPS, implicit_diff=False, **stepsize)

    return {
        f"{name}{'1/L' if known else 'line search'}": functools.partial(build, fun, known)
        for name, fun in functions.items()
        for known in (False, True)
    }


# Logistic regression


def jaxopt_logistic(solver: Callable) -> Family:
    """Gradient methods on jaxopt's own objective, and on the function that ours get."""

    def family(instance):
        functions = {"": jaxopt_objective.l2_multiclass_logreg, "our loss, ": _our_loss(instance)}
        data = instance.parts["X"], instance.parts["y"]
        return _jaxopt(instance, _steps(solver, functions), instance.hparams, data)

    return family


def _our_loss(instance: Instance) -> Callable:
    return lambda params, hparams, data: instance.problem.inner_loss(params, hparams, data)


def jaxopt_lbfgs(instance: Instance) -> Settings:
    """Its line searches, and its two objectives."""

    def build(fun, linesearch, tol, scale):
        return jaxopt.LBFGS(fun=fun, linesearch=linesearch, tol=tol, maxiter=MAX_STEPS, implicit_diff=False)

    functions = {"": jaxopt_objective.l2_multiclass_logreg, "our loss, ": _our_loss(instance)}
    solvers = {
        f"{name}{linesearch}": functools.partial(build, fun, linesearch)
        for name, fun in functions.items()
        for linesearch in ("zoom", "backtracking", "hager-zhang")
    }
    return _jaxopt(instance, solvers, instance.hparams, (instance.parts["X"], instance.parts["y"]))


def jaxopt_anderson(instance: Instance) -> Settings:
    """On the gradient step of length 1/L."""

    def build(tol, scale):
        def moved(params, hparams, data):
            gradient = jax.grad(instance.problem.inner_loss)(params, hparams, data)
            return params - gradient / scale

        return jaxopt.AndersonAcceleration(
            fixed_point_fun=moved, history_size=10, ridge=1e-10, tol=tol, maxiter=MAX_STEPS, implicit_diff=False
        )

    return _jaxopt(instance, {"": build}, instance.hparams, instance.data)


class _SumOfLosses(type(jaxopt_objective.multiclass_logreg)):
    """jaxopt's `multiclass_logreg` times m: its steps are 2/‖xⱼ‖², which is m times too short for the mean."""

    def subfun(self, predictions, data):
        return len(data[1]) * super().subfun(predictions, data)


def jaxopt_logistic_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent, the penalty in the prox."""
    samples = instance.parts["X"].shape[0]
    blocks = _blocks(_SumOfLosses(), jaxopt.prox.prox_ridge)
    return _jaxopt(instance, blocks, samples * instance.hparams, (instance.parts["X"], instance.parts["y"]))


def optimistix(kind: str, **solvers: Callable) -> Family:
    """Solvers of optimistix: `"minimise"` the loss, or `"root_find"` a zero of its gradient."""

    def family(instance):
        loss = instance.problem.inner_loss
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


# Lasso


def jaxopt_lasso(instance: Instance) -> Settings:
    """ProximalGradient."""
    solver = functools.partial(jaxopt.ProximalGradient, prox=jaxopt.prox.prox_lasso)
    settings = _steps(solver, {"": jaxopt_objective.least_squares})
    return _jaxopt(instance, settings, instance.hparams, (instance.parts["X"], instance.parts["y"]))


class _SumOfSquares(type(jaxopt_objective.least_squares)):
    """jaxopt's `least_squares` times m: its steps are 1/‖xⱼ‖², which is m times too short for the mean."""

    def subfun(self, predictions, data):
        return jnp.sum((predictions - data[1]) ** 2) / 2


def jaxopt_lasso_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    samples = instance.parts["X"].shape[0]
    blocks = _blocks(_SumOfSquares(), jaxopt.prox.prox_lasso)
    return _jaxopt(instance, blocks, samples * instance.hparams, (instance.parts["X"], instance.parts["y"]))


def _blocks(fun: Any, block_prox: Callable) -> dict[str, Callable]:
    def build(tol, scale):
        return jaxopt.BlockCoordinateDescent(
            fun=fun, block_prox=block_prox, tol=tol, maxiter=MAX_STEPS, implicit_diff=False
        )

    return {"": build}


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


# The dual of the SVM


def _svm_functions(instance: Instance) -> dict[str, Callable]:
    """jaxopt's objective, which goes through X, and the function that ours get, which goes through the Gram matrix."""

    def through_features(params, hparams, data):
        weights = data["train"]["features"].T @ (data["train"]["targets"] - params)
        return jnp.vdot(weights, weights) / (2 * jnp.exp(hparams)) + jnp.vdot(params, data["train"]["targets"])

    return {"": through_features, "our loss, ": _our_loss(instance)}


def _simplices(params, _):
    return jax.vmap(jaxopt_projection.projection_simplex)(params)


def jaxopt_svm(instance: Instance) -> Settings:
    """ProjectedGradient."""
    solver = functools.partial(jaxopt.ProjectedGradient, projection=_simplices)
    return _jaxopt(instance, _steps(solver, _svm_functions(instance)), None, instance.hparams, instance.data)


def jaxopt_svm_mirror(instance: Instance) -> Settings:
    """MirrorDescent with the entropy, its step the best of multiples of 1/L."""

    def kl(params, gradient, stepsize, _):
        return jax.nn.softmax(jnp.log(params) - stepsize * gradient, axis=-1)

    def build(fun, multiple, tol, scale):
        return jaxopt.MirrorDescent(
            fun=fun,
            projection_grad=kl,
            stepsize=lambda _: multiple / scale,
            tol=tol,
            maxiter=MAX_STEPS,
            implicit_diff=False,
        )

    solvers = {
        f"{name}{multiple}/L": functools.partial(build, fun, multiple)
        for name, fun in _svm_functions(instance).items()
        for multiple in (3, 10, 30)
    }
    return _jaxopt(instance, solvers, None, instance.hparams, instance.data)


class _SvmDual(type(jaxopt_objective.multiclass_linear_svm_dual)):
    """jaxopt's objective; the constants of its columns lack the division by θ, without which its steps are wrong."""

    def columnwise_lipschitz_const(self, l2reg, data):
        return super().columnwise_lipschitz_const(l2reg, data) / l2reg


def jaxopt_svm_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    parts = instance.parts
    blocks = _blocks(_SvmDual(), lambda row, _, step: jaxopt_projection.projection_simplex(row))
    return _jaxopt(instance, blocks, None, parts["theta"], (parts["X"], parts["Y"]))


# Non-negative least squares


def jaxopt_nnls(instance: Instance) -> Settings:
    """ProjectedGradient."""
    solver = functools.partial(jaxopt.ProjectedGradient, projection=jaxopt_projection.projection_non_negative)
    settings = _steps(solver, {"": lambda w, data: jnp.sum((data[0] @ w - data[1]) ** 2) / 2})
    return _jaxopt(instance, settings, None, (instance.parts["X"], instance.parts["y"]))


def jaxopt_nnls_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    blocks = _blocks(_SumOfSquares(), lambda x, _, step: jnp.maximum(x, 0))
    return _jaxopt(instance, blocks, None, (instance.parts["X"], instance.parts["y"]))


def jaxopt_nnls_program(instance: Instance) -> Settings:
    """BoxOSQP with each of its linear solvers; by products where it can, as ours states the constraints."""
    count = instance.start.size

    def setting(linear, by_products):
        def solve(tol, Q, c):
            product: dict[str, Any] = {"matvec_A": lambda _, x: x} if by_products else {}
            solver = jaxopt.BoxOSQP(eq_qp_solve=linear, tol=tol, maxiter=MAX_STEPS, implicit_diff=False, **product)
            bounds = jnp.zeros(count, Q.dtype), jnp.full(count, jnp.inf, Q.dtype)
            rows = jnp.zeros(()) if by_products else jnp.eye(count, dtype=Q.dtype)
            params, state = solver.run(None, params_obj=(Q, c), params_eq=rows, params_ineq=bounds)
            return params.primal[0], state.iter_num

        return compiled(solve, instance.parts["Q"], instance.parts["c"])

    choices = {
        "lu": ("lu", False),
        "cg": ("cg", False),
        "cg by products": ("cg", True),
        "cg+jacobi": ("cg+jacobi", False),
    }
    return {name: setting(*choice) for name, choice in choices.items()}
