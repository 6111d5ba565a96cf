"""A linear solve with the derivatives of A⁻¹ b."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolution, LinearSolver, Operator, Product
from bilevel.linear._system import System


def differentiable_solve(
    solver: LinearSolver,
    operator: Operator,
    b: PyTree,
    init: PyTree | None = None,
    *,
    system: System | None = None,
    transposed: bool = False,
    nan_on_failure: bool = False,
) -> LinearSolution:
    """`solver.solve` with the derivatives of A⁻¹ b in every mode; the solver itself is never differentiated.

    Reverse mode solves transposed systems with the transpose of the product, unless the operator is `self_adjoint`. So a
    symmetry that is declared and does not hold makes no derivative wrong.

    Args:
      solver: any linear solver; its tolerances refer to ‖b‖, and to the right-hand side of each derivative.
      operator: A.
      b: right-hand side, with the structure of the unknown.
      init: start, like b; it has derivative zero.
      system: the form in which A x = b and its transpose are solved, in place of `operator`; no start is used then.
      transposed: `operator` is the transpose of the system's.
      nan_on_failure: an answer that missed its tolerance, here or in a derivative, is NaN.

    Returns:
      LinearSolution; only its value is differentiable.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> def solve(scale, b):
      ...     return bl.linear.differentiable_solve(bl.linear.CG(), bl.linear.Operator(lambda v: scale * v), b).value
      >>> print(jax.grad(lambda scale: solve(scale, jnp.ones(2)).sum())(2.0).round(4))
      -0.5
    """
    init = jax.lax.stop_gradient(init)

    def solved(matvec: Product, b: PyTree, transposed: bool) -> tuple[PyTree, LinearSolution]:
        if system is None:
            found = solver.solve(dataclasses.replace(operator, matvec=matvec), b, init)
        else:
            found = (system.solve_transposed if transposed else system.solve)(solver, b)
        value = found.value
        if nan_on_failure:
            value = jax.tree.map(lambda x: jnp.where(found.converged, x, jnp.nan), value)
        return value, dataclasses.replace(found, value=None)

    value, record = jax.lax.custom_linear_solve(
        lambda v: _tree.tie(operator.matvec(v)),
        _tree.tie(b),
        solve=lambda matvec, b: solved(matvec, b, transposed),
        transpose_solve=lambda matvec, b: solved(matvec, b, not transposed),
        symmetric=operator.self_adjoint,
        has_aux=True,
    )
    return dataclasses.replace(record, value=_tree.tie(value))
