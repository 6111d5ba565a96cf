"""jaxopt's contenders of `inner.py`, each in its best case: several settings, and corrections of wrong step sizes.

Tolerances are traced, so that each setting is compiled once. Implicit differentiation is off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
from _inner_contenders import MAX_STEPS, Settings, compiled
from _inner_problems import Instance
from jaxopt import objective, projection


def _run(instance: Instance, solvers: dict[str, Callable], *args: Any) -> Settings:
    """Settings of jaxopt, each given by the function that builds its solver from a tolerance and L."""

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


def logistic(instance: Instance) -> Settings:
    """GradientDescent with acceleration, on jaxopt's own objective and on our loss."""
    settings = _steps(jaxopt.GradientDescent, _functions(instance))
    return _run(instance, settings, instance.hparams, (instance.parts["X"], instance.parts["y"]))


def _functions(instance: Instance) -> dict[str, Callable]:
    return {"": objective.l2_multiclass_logreg, "our loss, ": _our_loss(instance)}


def _our_loss(instance: Instance) -> Callable:
    return lambda params, hparams, data: instance.problem.parts.inner_loss(params, hparams, data)


def lbfgs(instance: Instance) -> Settings:
    """LBFGS with each line search, on both objectives."""

    def build(fun, linesearch, tol, scale):
        return jaxopt.LBFGS(fun=fun, linesearch=linesearch, tol=tol, maxiter=MAX_STEPS, implicit_diff=False)

    solvers = {
        f"{name}{linesearch}": functools.partial(build, fun, linesearch)
        for name, fun in _functions(instance).items()
        for linesearch in ("zoom", "backtracking", "hager-zhang")
    }
    return _run(instance, solvers, instance.hparams, (instance.parts["X"], instance.parts["y"]))


def anderson(instance: Instance) -> Settings:
    """AndersonAcceleration of the gradient step of length 1/L, with different memories and regularizations."""

    def build(memory, ridge, tol, scale):
        def moved(params, hparams, data):
            gradient = jax.grad(instance.problem.parts.inner_loss)(params, hparams, data)
            return params - gradient / scale

        return jaxopt.AndersonAcceleration(
            fixed_point_fun=moved, history_size=memory, ridge=ridge, tol=tol, maxiter=MAX_STEPS, implicit_diff=False
        )

    solvers = {
        f"memory {memory}, ridge {ridge:.0e}": functools.partial(build, memory, ridge)
        for memory in (5, 10)
        for ridge in (1e-5, 1e-8, 1e-12)
    }
    return _run(instance, solvers, instance.hparams, instance.data)


# Lasso


def lasso(instance: Instance) -> Settings:
    """ProximalGradient."""
    solver = functools.partial(jaxopt.ProximalGradient, prox=jaxopt.prox.prox_lasso)
    settings = _steps(solver, {"": objective.least_squares})
    return _run(instance, settings, instance.hparams, (instance.parts["X"], instance.parts["y"]))


class _SumOfSquares(type(objective.least_squares)):
    """jaxopt's `least_squares` times m, for which its steps of 1/‖xⱼ‖² are right; for the mean they are m times too short."""

    def subfun(self, predictions, data):
        return jnp.sum((predictions - data[1]) ** 2) / 2


def lasso_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    samples = instance.parts["X"].shape[0]
    blocks = _blocks(_SumOfSquares(), jaxopt.prox.prox_lasso)
    return _run(instance, blocks, samples * instance.hparams, (instance.parts["X"], instance.parts["y"]))


def _blocks(fun: Any, block_prox: Callable) -> dict[str, Callable]:
    def build(tol, scale):
        return jaxopt.BlockCoordinateDescent(
            fun=fun, block_prox=block_prox, tol=tol, maxiter=MAX_STEPS, implicit_diff=False
        )

    return {"": build}


# The dual of the SVM


def _svm_functions(instance: Instance) -> dict[str, Callable]:
    """jaxopt's objective, which multiplies by X, and our loss, which multiplies by the Gram matrix."""

    def through_features(params, hparams, data):
        weights = data["train"]["features"].T @ (data["train"]["targets"] - params)
        return jnp.vdot(weights, weights) / (2 * jnp.exp(hparams)) + jnp.vdot(params, data["train"]["targets"])

    return {"": through_features, "our loss, ": _our_loss(instance)}


def _simplices(params, _):
    return jax.vmap(projection.projection_simplex)(params)


def svm(instance: Instance) -> Settings:
    """ProjectedGradient."""
    solver = functools.partial(jaxopt.ProjectedGradient, projection=_simplices)
    return _run(instance, _steps(solver, _svm_functions(instance)), None, instance.hparams, instance.data)


def svm_mirror(instance: Instance) -> Settings:
    """MirrorDescent with the entropy, and several multiples of 1/L as step."""

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
    return _run(instance, solvers, None, instance.hparams, instance.data)


class _SvmDual(type(objective.multiclass_linear_svm_dual)):
    """jaxopt's objective, with its Lipschitz constants of columns divided by θ; without this, the steps are wrong."""

    def columnwise_lipschitz_const(self, l2reg, data):
        return super().columnwise_lipschitz_const(l2reg, data) / l2reg


def svm_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    parts = instance.parts
    blocks = _blocks(_SvmDual(), lambda row, _, step: projection.projection_simplex(row))
    return _run(instance, blocks, None, parts["theta"], (parts["X"], parts["Y"]))


# Non-negative least squares


def nnls(instance: Instance) -> Settings:
    """ProjectedGradient."""
    solver = functools.partial(jaxopt.ProjectedGradient, projection=projection.projection_non_negative)
    settings = _steps(solver, {"": lambda w, data: jnp.sum((data[0] @ w - data[1]) ** 2) / 2})
    return _run(instance, settings, None, (instance.parts["X"], instance.parts["y"]))


def nnls_cd(instance: Instance) -> Settings:
    """BlockCoordinateDescent."""
    blocks = _blocks(_SumOfSquares(), lambda x, _, step: jnp.maximum(x, 0))
    return _run(instance, blocks, None, (instance.parts["X"], instance.parts["y"]))


def nnls_program(instance: Instance) -> Settings:
    """BoxOSQP with each of its linear solvers, and with constraints given by products where it accepts them, as ours are."""
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
