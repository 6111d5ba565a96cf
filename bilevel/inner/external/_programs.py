"""Quadratic and cone programs on the host: their matrices, their solution by CVXPY, and its last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.inner.external import _callback
from bilevel.operators.cones import Cones
from bilevel.statements import QP, Factored, apply

_REFINEMENTS = 20
_MOST_REFINED = 2000


class Found(NamedTuple):
    """A primal-dual solution, multipliers row by row, and the solver's iterations."""

    primal: np.ndarray
    dual: np.ndarray
    slack: np.ndarray
    steps: int


def matrix(operator: Any, like: Any) -> tuple[Any, int]:
    """A matrix of an operator of a `QP` on arrays like z, and on how many columns of z it acts alike.

    A matrix stands as it is, for all columns; a function is applied to the unit vectors of raveled arrays.
    """
    if operator is None:
        return None, 1
    if isinstance(operator, Factored):
        operator = operator.scale * operator.factor @ operator.factor.T
    if not callable(operator):
        return operator, like.size // like.shape[0]
    units = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    return jax.vmap(lambda e: jnp.ravel(apply(operator, e)), out_axes=1)(units), 1


class Program(NamedTuple):
    """minimize ½zᵀPz + cᵀz subject to Az = b in the first `equalities` rows, Az ≤ b in the others; sparse, for a raveled z."""

    P: Any
    c: np.ndarray
    A: Any
    b: np.ndarray
    equalities: int

    @classmethod
    def of(cls, arrays: QP, columns: QP) -> Program:
        """From the matrices of a `QP`, each for so many columns; None for what is not there."""
        import scipy.sparse as sp

        def whole(name):
            found = getattr(arrays, name)
            return sp.kron(sp.csc_array(found), sp.eye_array(getattr(columns, name)), format="csc")

        c = np.ravel(arrays.c)
        sides = [(name, np.ravel(b)) for name, b in (("E", arrays.d), ("M", arrays.h)) if b is not None]
        rows = sp.vstack([whole(name) for name, _ in sides], format="csc") if sides else sp.csc_array((0, c.size))
        quadratic = whole("Q")
        return cls(
            (quadratic + quadratic.T) / 2,
            c,
            rows,
            np.concatenate([np.zeros(0), *(b for _, b in sides)]),
            0 if arrays.d is None else np.size(arrays.d),
        )

    def solve(self, minimize: Callable[..., int]) -> Found:
        """By CVXPY."""
        import cvxpy as cp

        z = cp.Variable(self.c.size)
        objective = self.c @ z
        if self.P.nnz:
            objective += cp.quad_form(z, cp.psd_wrap(self.P)) / 2
        q = self.equalities
        rows = [self.A[:q] @ z == self.b[:q]] if q else []
        rows += [self.A[q:] @ z <= self.b[q:]] if q < len(self.b) else []
        steps = minimize(objective, rows)
        dual = np.concatenate([np.zeros(0), *(np.atleast_1d(row.dual_value) for row in rows)])
        return Found(z.value, dual, self.b - self.A @ z.value, steps)

    def polish(self, found: Found) -> Found:
        """The solution of the equations that hold where the multiplier of an inequality exceeds its slack; the better of both.

        [[P, Aᵀ], [A, 0]] on the equalities and those rows, by factors of a regularized matrix and iterative refinement, so that
        it may be singular.
        """
        import scipy.sparse as sp

        active = found.dual > found.slack
        active[: self.equalities] = True
        rows = self.A[np.nonzero(active)[0]]
        whole = sp.block_array([[self.P, rows.T], [rows, None]], format="csc") if rows.shape[0] else self.P
        right = np.concatenate([-self.c, self.b[active]])
        n, size = self.c.size, abs(whole).max()
        if not size > 0:
            return found
        signs = np.where(np.arange(len(right)) < n, 1.0, -1.0)
        solve = _factored(whole + sp.diags_array(1e-9 * size * signs))
        x = np.concatenate([found.primal, found.dual[active]])
        for _ in range(_REFINEMENTS):
            x = x + solve(right - whole @ x)
        dual = np.zeros_like(found.dual)
        dual[active] = x[n:]
        polished = Found(x[:n], dual, self.b - self.A @ x[:n], found.steps)
        return polished if self._error(polished) <= self._error(found) else found

    def _error(self, found: Found) -> float:
        """The largest violation of the KKT conditions."""
        below, slack = found.dual[self.equalities :], found.slack[self.equalities :]
        parts = (
            self.P @ found.primal + self.c + self.A.T @ found.dual,
            found.slack[: self.equalities],
            np.minimum(slack, 0),
            np.minimum(below, 0),
            np.minimum(np.abs(slack), np.abs(below)),
        )
        return max(float(np.max(np.abs(part), initial=0)) for part in parts)


def _factored(matrix: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A solver of systems with a sparse matrix, dense where most of it is filled."""
    import scipy.linalg
    import scipy.sparse.linalg

    if matrix.nnz > matrix.shape[0] ** 2 / 10:
        factors = scipy.linalg.lu_factor(matrix.toarray())
        return lambda b: scipy.linalg.lu_solve(factors, b)
    return scipy.sparse.linalg.splu(matrix.tocsc()).solve


def refine_conic(cones: Cones) -> Callable[..., Found]:
    """Newton's method on the residual map of a cone program's embedding (`optimality.Conic`, its scale held), as long as it helps.

    The system is solved densely in the least-squares sense, so that it may be singular; a program with more than
    2000 variables and rows is left as it is.

    Reference: Busseti, Moursi & Boyd, Solution refinement at regular points of conic problems, 2019.
    """

    def residual(x, c, e, d):
        u, v = jnp.split(x, [c.shape[0]])
        dual = cones.project_dual(v)
        return jnp.concatenate([dual @ e + c, d - e @ u - dual + v])

    linearized = jax.jit(lambda x, *program: (residual(x, *program), jax.jacfwd(residual)(x, *program)))
    project = jax.jit(cones.project_dual)

    def refine(found: Found, c: Any, e: Any, d: Any) -> Found:
        x, best = np.concatenate([found.primal, found.dual - found.slack]), np.inf
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
    return Found(z.value, np.atleast_1d(rows.dual_value), slack.value, steps)


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
