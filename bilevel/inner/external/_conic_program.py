"""Cone programs on the host: their solution by CVXPY, and its last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.inner.external import _callback
from bilevel.inner.external._quadratic_program import Found
from bilevel.operators.cones import Cones

_REFINEMENTS, _MOST_REFINED = 20, 2000


def refine_conic(cones: Cones) -> Callable[..., Found]:
    """Newton's method on the residual map of the embedding (`optimality.Conic`, its scale held), as long as it helps.

    Its system is solved densely in the least-squares sense, so that it may be singular; a program with more than 2000
    variables and rows is left as it is.

    Reference: Busseti, Moursi & Boyd, Solution refinement at regular points of conic problems, 2019.
    """

    def residual(x, c, e, d):
        u, v = jnp.split(x, [c.shape[0]])
        dual = cones.project_dual(v)
        return jnp.concatenate([dual @ e + c, d - e @ u - dual + v])

    linearized = jax.jit(lambda x, *program: (residual(x, *program), jax.jacfwd(residual)(x, *program)))
    project = jax.jit(cones.project_dual)

    def refine(found: Found, c: Any, e: Any, d: Any) -> Found:
        x = at = np.concatenate([found.primal, found.dual - found.slack])
        best = np.inf
        if len(x) > _MOST_REFINED:
            return found
        with _callback.jax_on_host():
            program = jax.device_put(_callback.aligned((c, e, d)))
            for _ in range(_REFINEMENTS):
                value, jacobian = (np.asarray(a) for a in linearized(_callback.aligned(x), *program))
                error = float(np.max(np.abs(value), initial=0))
                if not error < best:
                    break
                best, at = error, x
                x = x - np.linalg.lstsq(jacobian, value, rcond=1e-13)[0]
            v = at[len(c) :]
            dual = np.asarray(project(_callback.aligned(v)))
        return Found(at[: len(c)], dual, dual - v, found.steps)

    return refine


def solve_conic(c: Any, e: Any, d: Any, cones: Cones, minimize: Callable[..., int]) -> Found:
    """minimize cᵀz subject to Ez + s = d, s in K, by CVXPY."""
    import cvxpy as cp

    z, slack = cp.Variable(c.size), cp.Variable(cones.size)
    rows = e @ z + slack == d
    steps = minimize(c @ z, [rows, *_in_cones(slack, cones)])
    primal, dual, found = (np.asarray(a) for a in (z.value, rows.dual_value, slack.value))
    return Found(primal, dual, found, steps)


def _in_cones(slack: Any, cones: Cones) -> list[Any]:
    import cvxpy as cp

    zero, below = cones.zero, cones.zero + cones.nonnegative
    found = [slack[:zero] == 0] if zero else []
    found += [slack[zero:below] >= 0] if cones.nonnegative else []
    at = below
    for size in cones.second_order:
        found.append(cp.SOC(slack[at], slack[at + 1 : at + size]))
        at += size
    for n in cones.semidefinite:
        matrix, (columns, rows) = cp.Variable((n, n), PSD=True), np.triu_indices(n)
        scale = np.where(rows == columns, 1, np.sqrt(2))
        found.append(slack[at : at + scale.size] == cp.multiply(scale, matrix[columns, rows]))
        at += scale.size
    for _ in range(cones.exponential):
        found.append(cp.ExpCone(slack[at], slack[at + 1], slack[at + 2]))
        at += 3
    return found
