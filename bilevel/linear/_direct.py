"""Dense factorization."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear._base import Attempt, Operator, Prepared, PreparedSolver, raveled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direct(PreparedSolver):
    """Form A by n products with it, and factor it.

    Exact up to rounding; O(n³) time and O(n²) memory for n unknowns. Leaves are raveled into one vector first, so that
    couplings between leaves count. `"svd"` gives the minimum-norm least-squares answer x = A⁺ b, by eigenvalues if A is
    symmetric; singular values below n ε times the largest count as zero.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      method: `"auto"` (default) is SVD if the operator may be singular, else Cholesky if A is positive definite, else LU.
      max_size: more unknowns are refused, so that no large dense matrix is formed unnoticed; 10,000 by default.

    Statuses besides `CONVERGED`: `NEGATIVE_CURVATURE` (Cholesky failed), `BREAKDOWN` (LU or QR met a zero pivot),
    `STAGNATED` (the limit of the precision; for SVD an inconsistent system, whose least-squares answer is returned).

    Raises:
      ValueError: more than `max_size` unknowns, or an unknown method.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> operator = bl.linear.Operator(lambda v: jnp.array([2.0, 4.0]) * v, "positive_definite")
      >>> found = bl.linear.Direct().solve(operator, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    method: Literal["auto", "cholesky", "lu", "qr", "svd"] = "auto"
    max_size: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("auto", "cholesky", "lu", "qr", "svd"):
            raise ValueError(f"linear.Direct: method must be auto, cholesky, lu, qr or svd, got {self.method!r}")

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Form and factor A; each right-hand side then takes a substitution. The start is not used."""
        product, flat, unravel = raveled(operator, like)
        if flat.size > self.max_size:
            raise ValueError(
                f"linear.Direct would form a dense {flat.size} × {flat.size} matrix, more than max_size={self.max_size}: "
                "use an iterative solver (linear.CG, linear.GMRES, linear.Auto) or raise max_size"
            )
        # Row i of `rows` is column i of A.
        rows = jax.vmap(product)(jnp.eye(flat.size, dtype=flat.dtype))
        substitute, failure = _factored(self.choose(operator), rows.T, operator.structure != "general")
        finite = jnp.isfinite(rows).all()

        def attempt(b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
            b_flat = ravel_pytree(b)[0]
            x = substitute(b_flat)
            # A factorization that fails on finite input is reported by its reason, not by the NaN that it leaves.
            failed = ~jnp.isfinite(x).all() & finite & jnp.isfinite(b_flat).all()
            reason = jnp.where(failed, failure, Status.STAGNATED)
            return Attempt(_tree.cast_like(unravel(jnp.where(failed, 0, x)), b), reason, 1, 0)

        return Prepared(attempt, flat.size)

    def choose(self, operator: Operator) -> str:
        """The factorization for this operator."""
        if self.method != "auto":
            return self.method
        if operator.singular:
            return "svd"
        return "cholesky" if operator.structure == "positive_definite" else "lu"


def _factored(method: str, a: jax.Array, symmetric: bool) -> tuple[Callable[[jax.Array], jax.Array], Status]:
    """b ↦ x by a factorization of A, and the status if it fails."""
    if method == "cholesky":
        factor = jsl.cho_factor((a + a.T) / 2)
        return lambda b: jsl.cho_solve(factor, b), Status.NEGATIVE_CURVATURE
    if method == "lu":
        factor = jsl.lu_factor(a)
        return lambda b: jsl.lu_solve(factor, b), Status.BREAKDOWN
    if method == "qr":
        q, r = jnp.linalg.qr(a)
        return lambda b: jsl.solve_triangular(r, q.T @ b), Status.BREAKDOWN
    if symmetric:
        values, right = jnp.linalg.eigh((a + a.T) / 2)
        left = right
    else:
        left, values, transposed = jnp.linalg.svd(a, full_matrices=False)
        right = transposed.T
    size = jnp.abs(values)
    kept = size > a.shape[0] * jnp.finfo(a.dtype).eps * jnp.max(size, initial=0)
    inverse = _tree.divide(kept.astype(a.dtype), jnp.where(kept, values, 0))
    return lambda b: right @ (inverse * (left.T @ b)), Status.BREAKDOWN
