"""Quadratic and cone programs on the host: their solution by CVXPY, and its refinement to the last digits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.inner.external import _callback
from bilevel.operators.cones import Cones
from bilevel.statements import QP, Factored, apply

_REFINEMENTS, _MOST_REFINED = 20, 2000


class Found(NamedTuple):
    """A primal-dual solution, multipliers row by row, and the solver's iterations."""

    primal: np.ndarray
    dual: np.ndarray
    slack: np.ndarray
    steps: int


def matrix(operator: Any, like: Any) -> tuple[Any, int]:
    """The matrix of an operator of a `QP` on arrays like z, and the number of columns of z that share it.

    A matrix is kept, for all columns; a function is applied to the unit vectors of raveled arrays.
    """
    if operator is None:
        return None, 1
    if isinstance(operator, Factored):
        operator = operator.scale * operator.factor @ operator.factor.T
    if not callable(operator):
        return operator, like.size // like.shape[0]
    units = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    return jax.vmap(lambda e: jnp.ravel(apply(operator, e)), out_axes=1)(units), 1


class SparseProgram(NamedTuple):
    """minimize ½zᵀPz + cᵀz subject to Az = b in the first `equalities` rows, Az ≤ b in the others; sparse, for a raveled z."""

    P: Any
    c: np.ndarray
    A: Any
    b: np.ndarray
    equalities: int

    @classmethod
    def of(cls, arrays: QP, columns: QP) -> "SparseProgram":
        """From the matrices of a `QP`, each shared by a number of columns of z; None for a missing part."""
        import scipy.sparse as sp

        def whole(name: str) -> Any:
            found = getattr(arrays, name)
            return sp.kron(sp.csc_array(found), sp.eye_array(getattr(columns, name)), format="csc")

        c = np.ravel(arrays.c)
        sides = [(name, np.ravel(b)) for name, b in (("E", arrays.d), ("M", arrays.h)) if b is not None]
        rows = sp.vstack([whole(name) for name, _ in sides], format="csc") if sides else sp.csc_array((0, c.size))
        quadratic, bounds = whole("Q"), np.concatenate([np.zeros(0), *(b for _, b in sides)])
        return cls((quadratic + quadratic.T) / 2, c, rows, bounds, 0 if arrays.d is None else np.size(arrays.d))

    def solve(self, minimize: Callable[..., int]) -> Found:
        """Solve by CVXPY; `minimize` takes an objective and constraints, and returns the iterations."""
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
        """Solve with those inequalities as equations whose multiplier exceeds their slack, and return the better solution.

        The system [[P, Aᵀ], [A, 0]] on these rows may be singular: a regularized matrix is factored, and refined iteratively.
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
        equal, slack = np.split(found.slack, [self.equalities])
        dual = found.dual[self.equalities :]
        stationarity = self.P @ found.primal + self.c + self.A.T @ found.dual
        complementarity = np.minimum(np.abs(slack), np.abs(dual))
        parts = (stationarity, equal, np.minimum(slack, 0), np.minimum(dual, 0), complementarity)
        return max(float(np.max(np.abs(part), initial=0)) for part in parts)


def _factored(matrix: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A solver of systems with a sparse matrix, dense if more than a tenth of it is filled."""
    import scipy.linalg
    import scipy.sparse.linalg

    if matrix.nnz > matrix.shape[0] ** 2 / 10:
        factors = scipy.linalg.lu_factor(matrix.toarray())
        return lambda b: scipy.linalg.lu_solve(factors, b)
    return scipy.sparse.linalg.splu(matrix.tocsc()).solve


def refine_conic(cones: Cones) -> Callable[..., Found]:
    """Newton's method on the residual map of the embedding (`optimality.Conic`, with fixed scale), as long as the error falls.

    Its system may be singular: it is solved densely in the least-squares sense. A program with more than 2000 variables and
    rows is not refined.

    Reference: Busseti, Moursi & Boyd, Solution refinement at regular points of conic problems, 2019.
    """

    def residual(x: jax.Array, c: jax.Array, e: jax.Array, d: jax.Array) -> jax.Array:
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
