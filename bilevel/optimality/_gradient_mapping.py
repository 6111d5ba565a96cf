"""Proximal and projected gradient: the residual of one forward-backward step. `_active.py` has their linear systems."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel.linear import System
from bilevel.optimality._active import Linearization, reduction
from bilevel.optimality._base import Condition
from bilevel.optimality._lipschitz import choose_step, constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GradientMapping(Condition, abc.ABC):
    """F = (x − T(x))/η with T(x) = G(x − η∇₁inner_loss), η a scalar or one number per block."""

    @abc.abstractmethod
    def _step(self, problem, params, hparams, data) -> Any:
        """η, as the prox takes it: a scalar, or a tree of the structure of params."""

    @property
    def _bound(self) -> int | None:
        """A bound on the support, where one is given."""
        return None

    def residual(self, problem, params, hparams, data):
        """The gradient mapping; the step is a constant, since at a solution F = 0 whatever the step."""
        step = self._step(problem, params, hparams, data)
        eta = _spread(step, params)
        gradient = jax.grad(problem.inner_loss)(params, hparams, data)
        point = jax.tree.map(lambda x, e, g: x - e * g, params, eta, gradient)
        moved = problem.proximal_step(point, hparams, data, step)
        return jax.tree.map(lambda x, m, e: (x - m.astype(x.dtype)) / e, params, moved, eta)

    def system(self, problem, params, hparams, data):
        """A, general; with the symmetric system on the active set where its form is known."""
        operator = self._linearized(problem, params, hparams, data)
        if not (problem.polyhedral or problem.separable):
            return System(operator)
        step = self._step(problem, params, hparams, data)
        eta = _spread(step, params)
        gradient, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, hparams, data), params)
        point = jax.tree.map(lambda x, e, g: x - e * g, params, eta, gradient)
        _, jacobian = jax.linearize(
            lambda z: _tree.cast_like(problem.proximal_step(z, hparams, data, step), params), point
        )
        linearization = Linearization(hvp, jacobian, eta, params, _rows_among(problem, params, hparams, data))
        return System(operator, reduction(linearization, problem.separable, self._bound))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalGradient(_GradientMapping):
    """F = (x − prox_{ηg}(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss + g.

    Needs `Problem.prox`. ∂₁F is not symmetric; with `Problem.separable` its systems are solved on the support, where they
    are, and positive definite at a strict minimum. Differentiable where no coordinate sits at a kink of the prox; there,
    the derivative is that of one side (an element of the conservative Jacobian).

    Args:
      step: η. None: 1/L, L from `Problem.lipschitz` or else a power iteration on the Hessian. A unit step on unscaled
        data makes the general system hopelessly conditioned.
      support: a bound on the number of coordinates that are not zero: under `jit` the system is then gathered to that
        size. A larger support is reported as a breakdown. Outside `jit` the support is counted.
    """

    step: float | None = None
    support: int | None = None

    def __post_init__(self):
        _checks.require_positive("optimality.ProximalGradient", step=self.step, support=self.support)

    @property
    def _bound(self):
        return self.support

    def check(self, problem):
        """Require a prox, and a separable one for a support bound."""
        _checks.require_parts("optimality.ProximalGradient", problem, "inner_loss", "prox")
        if self.support is not None and problem.separable is not True:
            raise ValueError(
                "optimality.ProximalGradient: support bounds the number of non-zero coordinates, which needs "
                "Problem(separable=True): declare it if g is a sum over coordinates, or leave support out"
            )

    def _step(self, problem, params, hparams, data) -> Any:
        return choose_step(self.step, problem, params, hparams, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedGradient(_GradientMapping):
    """F = (x − proj_C(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss over C.

    Needs `Problem.projection`. ∂₁F is not symmetric; with `Problem.polyhedral` its systems are solved on the active face,
    where they are, and positive definite at a strict minimum. Differentiable under strict complementarity; elsewhere the
    derivative is that of the face of the computed point (an element of the conservative Jacobian).

    Args:
      step: η. None: 1/L, as for `ProximalGradient`.
    """

    step: float | None = None

    def __post_init__(self):
        _checks.require_positive("optimality.ProjectedGradient", step=self.step)

    def check(self, problem):
        """Require a projection."""
        _checks.require_parts("optimality.ProjectedGradient", problem, "inner_loss", "projection")

    def _step(self, problem, params, hparams, data) -> Any:
        return choose_step(self.step, problem, params, hparams, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProximalGradient(_GradientMapping):
    """F_j = (x_j − G_j(x_j − η_j [∇₁inner_loss]_j))/η_j for each block j, with a step of its own.

    The blocks are the rows (along the first axis) of each leaf of params; of a vector, its coordinates. Needs a prox or a
    projection that acts on each block by itself; the prox gets η with one number per row, shaped to broadcast against
    params. Zero where `ProximalGradient` is, with the same derivative; symmetric on the support or face as there.
    Better conditioned than one step where the blocks differ in scale.

    Args:
      step: one η for all blocks. None: 1/L_j from `Problem.block_lipschitz`, else 1/L.
    """

    step: float | None = None

    def __post_init__(self):
        _checks.require_positive("optimality.BlockProximalGradient", step=self.step)

    def check(self, problem):
        """Require a prox or a projection."""
        _checks.require_parts("optimality.BlockProximalGradient", problem, "inner_loss")
        if problem.prox is None and problem.projection is None:
            _checks.require_parts("optimality.BlockProximalGradient", problem, "prox")

    def _step(self, problem, params, hparams, data) -> Any:
        if self.step is not None or problem.block_lipschitz is None:
            return _rows(choose_step(self.step, problem, params, hparams, data), params)
        constants = problem.block_lipschitz(hparams, data)
        if jax.tree.structure(constants) != jax.tree.structure(params):
            raise ValueError(
                "Problem.block_lipschitz must return one vector for each leaf of params, one number per row"
            )
        return jax.tree.map(lambda c, x: _rows(constant(1 / c, x), x), constants, params)


def _rows_among(problem, params, hparams, data):
    """H_SS = X_SᵀDX_S and H_S = X_SᵀDX of a linear model; an index beyond the last is a column of zeros."""
    if problem.datafit is None or params.ndim != 1:
        return None
    design = problem.design(hparams, data)
    if not isinstance(design, jax.Array):
        return None  # of a sparse matrix no columns are gathered
    _, curvature = jax.linearize(lambda p: jax.grad(problem.datafit)(p, hparams, data), design @ params)

    def among(index):
        columns = design.at[:, index].get(mode="fill", fill_value=0)
        return lambda z: curvature(columns @ z) @ columns, lambda v: curvature(design @ v) @ columns

    return among


def _rows(step, params):
    """A scalar or a vector of steps as a tree of arrays that broadcast against the rows of each leaf."""

    def shape(x):
        step_of_leaf = jnp.broadcast_to(step.astype(x.dtype), x.shape[:1])
        return step_of_leaf.reshape(x.shape[:1] + (1,) * (x.ndim - 1))

    return jax.tree.map(shape, params)


def _spread(step, params):
    """η as a tree of arrays that broadcast against the leaves of params, in their dtypes."""
    if jax.tree.structure(step) == jax.tree.structure(params):
        return _tree.cast_like(step, params)
    return jax.tree.map(lambda x: step.astype(x.dtype), params)
