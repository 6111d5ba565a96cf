"""Dense factorization."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._status import Status
from bilevel.linear._base import Attempt, LinearSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direct(LinearSolver):
    """Form A by n products and factor it: Cholesky where A is positive definite, else LU.

    Exact up to rounding, O(n³) time and O(n²) memory. Leaves are raveled first, so blocks that couple two leaves count.

    Args:
      max_size: refuse more unknowns than this (ValueError); a dense matrix at scale is never formed silently.
    """

    max_size: int = 10_000

    def attempt(self, operator, b, init, tolerance):
        """Factor and solve; the start is not used."""
        flat, unravel = ravel_pytree(b)
        if flat.size > self.max_size:
            raise ValueError(
                f"linear.Direct would form a dense {flat.size} × {flat.size} matrix, more than max_size={self.max_size}: "
                "use an iterative solver (linear.CG, linear.GMRES, linear.Auto) or raise max_size"
            )
        rows = jax.vmap(lambda v: ravel_pytree(operator.matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
        if operator.structure == "positive_definite":
            factor = jax.scipy.linalg.cho_factor((rows + rows.T) / 2)
            x, failure = jax.scipy.linalg.cho_solve(factor, flat), Status.NEGATIVE_CURVATURE
        else:
            x, failure = jnp.linalg.solve(rows.T, flat), Status.BREAKDOWN
        # A factorization that failed on finite input is told by its reason, not by the NaN that it left.
        failed = ~jnp.isfinite(x).all() & jnp.isfinite(rows).all() & jnp.isfinite(flat).all()
        reason = jnp.where(failed, failure, Status.STAGNATED)
        return Attempt(_tree.cast_like(unravel(jnp.where(failed, 0, x)), b), reason, 1, flat.size)
