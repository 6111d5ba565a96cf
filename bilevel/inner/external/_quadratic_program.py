"""Quadratic programs on the host: their matrices, their solution by CVXPY, and its last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.statements import QP, Factored, apply

_REFINEMENTS = 20


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
        primal = np.asarray(z.value)
        return Found(primal, dual, self.b - self.A @ primal, steps)

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
