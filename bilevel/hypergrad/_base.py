"""The contract of a hypergradient estimator, and the record that it returns."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner import InnerSolver, Progress
from bilevel.problem import Problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypergradient:
    """A hypergradient with its provenance.

    Attributes:
      grad: d outer_loss(x*(θ), θ)/dθ, with the structure of hparams; None in place of leaves without a derivative.
      outer_loss: the outer loss at the computed inner solution.
      outer_error: an estimate, ⟨u, F(x)⟩, of how far that lies above the outer loss at the exact inner solution (the
        dual-weighted residual, exact to first order); NaN where the estimator has no adjoint.
      params: the inner solution.
      adjoint: the solution of the adjoint system, the start of the next one; unchanged by estimators that solve none.
      inner: how the inner solve ended.
      adjoint_status: int32 code of `bilevel.Status` for the adjoint solve.
      adjoint_residual: ‖Aᵀu − w‖₂/‖w‖₂; NaN where no system is solved.
      grad_evals, hvps: gradients and Hessian-vector products of the inner loss (a mixed product counts as one), in all.
    """

    grad: PyTree
    outer_loss: jax.Array
    outer_error: jax.Array
    params: PyTree
    adjoint: PyTree
    inner: Progress
    adjoint_status: jax.Array
    adjoint_residual: jax.Array
    grad_evals: jax.Array
    hvps: jax.Array

    @property
    def status(self) -> jax.Array:
        """The inner solve's status unless it converged, then the adjoint's."""
        return jnp.where(self.inner.status == Status.CONVERGED, self.adjoint_status, self.inner.status)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator(abc.ABC):
    """Base of all estimators: from a start, an inner solution and the hypergradient at it."""

    @abc.abstractmethod
    def check(self, problem: Problem, inner: InnerSolver) -> None:
        """Raise ValueError, before anything is traced, if the parts do not fit together."""

    @abc.abstractmethod
    def estimate(
        self,
        problem: Problem,
        inner: InnerSolver,
        params: PyTree,
        adjoint: PyTree,
        hparams: PyTree,
        data: PyTree,
        prepared: PyTree = None,
    ) -> Hypergradient:
        """Solve the inner problem from params, and estimate the hypergradient, warm-starting from `adjoint`.

        `prepared` is what `inner.prepare(problem, hparams, data)` returned; None does it here.
        """
