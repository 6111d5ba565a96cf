"""Proximal and projected gradient: the residual of one forward-backward step. `_active.py` has their linear systems."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _checks, _needs, _tree
from bilevel._curvature import choose_step, constant
from bilevel._tree import PyTree
from bilevel.linear import System
from bilevel.operators.projection import projection_simplex
from bilevel.optimality._active import Linearization, Product, reduction
from bilevel.optimality._base import Condition, largest_change
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GradientMapping(Condition):
    """F = (x − T(x))/η with T(x) = G(x − η∇₁inner_loss), η a scalar or one number per block."""

    step: float | None = None

    def __post_init__(self) -> None:
        _checks.require_positive(f"optimality.{type(self).__name__}", step=self.step)

    def _step(self, at: At, params: PyTree) -> Any:
        """η, as the prox takes it: a scalar, or a tree of the structure of params."""
        return choose_step(self.step, at, params)

    def _support(self) -> int | None:
        """A bound on the size of the support, if one is given."""
        return None

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The gradient mapping; the step is a constant, since at a solution F = 0 whatever the step."""
        step = self._step(at, params)
        eta = _spread(step, params)
        point = jax.tree.map(lambda x, e, g: x - e * g, params, eta, at.gradient(params))
        moved = at.proximal_step(point, step)
        return jax.tree.map(lambda x, m, e: (x - m.astype(x.dtype)) / e, params, moved, eta)

    def jump(self, at: At, params: PyTree, adjoint: PyTree, reach: jax.Array) -> jax.Array:
        """A bound by the derivative of the prox or projection alone, which holds the kinks: no gradient is evaluated nearby."""
        step = self._step(at, params)
        eta = _spread(step, params)
        point = jax.tree.map(lambda x, e, g: x - e * g, params, eta, at.gradient(params))

        def product(z: PyTree) -> PyTree:
            moved = jax.jvp(lambda z: _tree.cast_like(at.proximal_step(z, step), z), (z,), (adjoint,))[1]
            return jax.tree.map(lambda m, e: m / e, moved, eta)

        return largest_change(product, point, params, reach)

    def system(self, at: At, params: PyTree) -> System:
        """A, general; with the symmetric system on the active set where its form is known."""
        operator, parts = self._linearized(at, params), at.parts
        if not (parts.polyhedral or parts.separable):
            return System(operator)
        step = self._step(at, params)
        eta = _spread(step, params)
        gradient, hvp = jax.linearize(at.gradient, params)
        point = jax.tree.map(lambda x, e, g: x - e * g, params, eta, gradient)
        _, jacobian = jax.linearize(lambda z: _tree.cast_like(at.proximal_step(z, step), params), point)
        linearization = Linearization(hvp, jacobian, eta, params, _rows_among(at, params))
        return System(operator, reduction(linearization, parts.separable, self._support()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalGradient(_GradientMapping):
    """F = (x − prox_{ηg}(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss + g: the condition of proximal gradient descent.

    Needs `Problem.prox`. ∂₁F is not symmetric; with `Problem.separable` its systems are solved on the support, where they
    are, and positive definite at a strict minimum. Differentiable where no coordinate is at a kink of the prox; at a kink the
    derivative is the one from one side (an element of the conservative Jacobian).

    Args:
      step: η > 0. None: 1/L, L from `Problem.lipschitz` or else a power iteration on the Hessian. A unit step on unscaled data
        makes the general system hopelessly ill-conditioned.
      support: a bound on the number of coordinates that are not zero, for a separable g: under `jit` the system is then gathered
        to that size. A larger support is reported as a breakdown. Outside `jit` the support is counted.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> soft = bl.operators.prox.prox_lasso
      >>> lasso = bl.Problem(lambda x, l1, y: jnp.sum((x - y) ** 2) / 2, prox=lambda x, l1, y, step: soft(x, l1, step))
      >>> at = bl.At(lasso, 1.0, jnp.array([3.0, 0.5]))
      >>> print(bl.optimality.ProximalGradient(step=0.5).residual(at, jnp.array([2.0, 0.0])))
      [0. 0.]
    """

    needs = (_needs.LOSS, _needs.PROX)

    support: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("optimality.ProximalGradient", support=self.support)

    def _support(self) -> int | None:
        return self.support

    def check(self, problem: Problem) -> None:
        """Require a prox, and a separable one for a support bound."""
        super().check(problem)
        if self.support is not None and problem.parts.separable is not True:
            raise ValueError(
                "optimality.ProximalGradient: support bounds the number of non-zero coordinates, which needs "
                "Problem(separable=True): declare it if g is a sum over coordinates, or leave support out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedGradient(_GradientMapping):
    """F = (x − proj_C(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss over C: the condition of projected gradient descent.

    Needs `Problem.projection`. ∂₁F is not symmetric; with `Problem.polyhedral` its systems are solved on the active face,
    where they are, and positive definite at a strict minimum. Differentiable under strict complementarity; elsewhere the
    derivative is taken on the face of the computed point (an element of the conservative Jacobian).

    Args:
      step: η > 0. None: 1/L, as for `ProximalGradient`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> positive = bl.Problem(lambda x, theta, _: jnp.sum((x - theta) ** 2), projection=lambda x, *_: jnp.maximum(x, 0))
      >>> at = bl.At(positive, jnp.array([3.0, -1.0]))
      >>> print(bl.optimality.ProjectedGradient(step=0.5).residual(at, jnp.array([3.0, 0.0])))
      [0. 0.]
    """

    needs = (_needs.LOSS, _needs.PROJECTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProximalGradient(_GradientMapping):
    """F_j = (x_j − G_j(x_j − η_j [∇₁inner_loss]_j))/η_j for each block j, with a step of its own.

    The blocks are the rows (along the first axis) of each leaf of params; of a vector, its coordinates. Needs a prox or a
    projection that acts on each block by itself; the prox gets η with one number per row, shaped to broadcast against
    params. Zero where `ProximalGradient` is, with the same derivative; symmetric on the support or face as there.
    Better conditioned than one step where the blocks differ in scale.

    Args:
      step: one η > 0 for all blocks. None: 1/L_j from the problem's block_lipschitz, else 1/L.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> positive = bl.Problem(lambda x, theta, _: jnp.sum((x - theta) ** 2), projection=lambda x, *_: jnp.maximum(x, 0))
      >>> at = bl.At(positive, jnp.array([3.0, -1.0]))
      >>> print(bl.optimality.BlockProximalGradient(step=0.5).residual(at, jnp.array([3.0, 1.0])))
      [0. 2.]
    """

    needs = (_needs.LOSS, _needs.SET)

    def _step(self, at: At, params: PyTree) -> Any:
        constants = at.block_lipschitz()
        if self.step is not None or constants is None:
            return _rows(choose_step(self.step, at, params), params)
        if jax.tree.structure(constants) != jax.tree.structure(params):
            raise ValueError("block_lipschitz must return one vector for each leaf of params, one number per row")
        return jax.tree.map(lambda c, x: _rows(constant(1 / c, x), x), constants, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvexHull(Condition):
    """x* = V(θ)p* minimizes inner_loss over conv(v₁(θ), …, v_m(θ)): the condition of its weights p* on the simplex.

    params is p, shape (m,), which a Frank–Wolfe method returns with x. The problem's inner_loss takes x; outer_loss takes p, and
    may call `point` for x. F is that of `ProjectedGradient` for p ↦ inner_loss(V(θ)p, θ): its systems are solved on the active
    face, where they are symmetric positive semidefinite. Where the active vertices are affinely dependent p is not unique, but
    x and its derivative are.

    Args:
      vertices: (hparams, data) -> V, shape (n, m); or a function p ↦ V(θ)p.
      step: η, as in `ProjectedGradient`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> hull = bl.optimality.ConvexHull(vertices=lambda theta, data: jnp.array([[0.0, 2.0], [0.0, 2.0]]))
      >>> problem = bl.Problem(lambda x, theta, data: jnp.sum((x - theta) ** 2))
      >>> weights = bl.inner.FISTA().solve(hull.in_weights(problem), jnp.array([1.0, 0.0]), 0.5).params
      >>> print([f"{weight:.2f}" for weight in weights], [f"{x:.2f}" for x in hull.point(weights, 0.5, None)])
      ['0.75', '0.25'] ['0.50', '0.50']
    """

    needs = (_needs.LOSS, _needs.SMOOTH)
    takes = ("weights",)

    vertices: Callable[[Any, Any], Any]
    step: float | None = None

    def __post_init__(self) -> None:
        _checks.require_positive("optimality.ConvexHull", step=self.step)

    def point(self, params: PyTree, hparams: PyTree, data: PyTree) -> PyTree:
        """x = V(θ)p."""
        matrix = self.vertices(hparams, data)
        return matrix(params) if callable(matrix) else matrix @ params

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The gradient mapping of the weights."""
        return ProjectedGradient(step=self.step).residual(self._in_weights(at), params)

    def system(self, at: At, params: PyTree) -> System:
        """On the active face."""
        return ProjectedGradient(step=self.step).system(self._in_weights(at), params)

    def in_weights(self, problem: Problem) -> Problem:
        """The same problem as one of p over the simplex, for inner solvers: minimize inner_loss(V(θ)p, θ)."""

        def inner_loss(params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
            return problem.parts.inner_loss(self.point(params, hparams, data), hparams, data)

        return Problem(
            inner_loss,
            problem.outer_loss,
            projection=lambda params, hparams, data: projection_simplex(params),
            polyhedral=True,
        )

    def _in_weights(self, at: At) -> At:
        return at.replace(problem=self.in_weights(at.problem))


def _rows_among(at: At, params: PyTree) -> Callable[[jax.Array], tuple[Product, Product]] | None:
    """H_SS = X_SᵀDX_S and H_S = X_SᵀDX of a linear model; an index beyond the last is a column of zeros."""
    if at.parts.datafit is None or params.ndim != 1:
        return None
    design = at.design()
    if not isinstance(design, jax.Array):
        return None  # the columns of a sparse matrix are not gathered
    _, curvature = jax.linearize(jax.grad(at.datafit), design @ params)

    def among(index: jax.Array) -> tuple[Product, Product]:
        columns = design.at[:, index].get(mode="fill", fill_value=0)
        return lambda z: curvature(columns @ z) @ columns, lambda v: curvature(design @ v) @ columns

    return among


def _rows(step: jax.Array, params: PyTree) -> PyTree:
    """A scalar or a vector of steps as a tree of arrays that broadcast against the rows of each leaf."""

    def shape(x: jax.Array) -> jax.Array:
        step_of_leaf = jnp.broadcast_to(step.astype(x.dtype), x.shape[:1])
        return step_of_leaf.reshape(x.shape[:1] + (1,) * (x.ndim - 1))

    return jax.tree.map(shape, params)


def _spread(step: Any, params: PyTree) -> PyTree:
    """η as a tree of arrays that broadcast against the leaves of params, in their dtypes."""
    if jax.tree.structure(step) == jax.tree.structure(params):
        return _tree.cast_like(step, params)
    return jax.tree.map(lambda x: step.astype(x.dtype), params)
