"""Proximal operators in closed form: Parikh & Boyd, Proximal Algorithms, 2014, chapter 6. A penalty of None is 1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.operators import _numeric


def prox_none(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
    """The prox of g = 0: x itself, any pytree; the other arguments are not used."""
    del hyperparams, scaling
    return x


def prox_lasso(x: Any, l1reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Soft thresholding, the prox of g(y) = Σ l1reg·|y|.

    Differentiable where |x| differs from the threshold scaling·l1reg; there the derivative is 0.

    Args:
      x: any pytree.
      l1reg: penalty, a scalar or with the structure of x.
      scaling: step.

    Example:
      >>> print(prox_lasso(jnp.array([3.0, -0.5]), 1.0))
      [2. 0.]
    """
    return _by_leaf(_shrink, x, scaling, l1reg)


def _shrink(x: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) > threshold, x - jnp.sign(x) * threshold, 0)


def _by_leaf(function: Callable, x: Any, scaling: Any, penalty: Any, *others: Any) -> Any:
    """function(x, scaling·penalty, *others) on every leaf, all in the dtype of the leaf."""

    def apply(x: Any, penalty: Any, *others: Any) -> jax.Array:
        x = _numeric.as_float(x)
        return function(x, _numeric.threshold(penalty, scaling, x), *(_numeric.cast(other, x) for other in others))

    penalty = 1.0 if penalty is None else penalty
    return jax.tree.map(apply, x, *(_numeric.spread(value, x) for value in (penalty, *others)))


def prox_non_negative_lasso(x: Any, l1reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """The prox of g(y) = Σ l1reg·y on y ≥ 0: max(x − scaling·l1reg, 0), with slope 0 at the threshold.

    Args:
      x: any pytree.
      l1reg: penalty, a scalar or with the structure of x.
      scaling: step.
    """
    return _by_leaf(lambda x, threshold: jax.nn.relu(x - threshold), x, scaling, l1reg)


def prox_elastic_net(x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0) -> Any:
    """The prox of g(y) = Σ λ(|y| + γ y²/2): soft thresholding at scaling·λ, divided by 1 + scaling·λγ.

    Differentiable where |x| differs from the threshold; there the derivative is 0.

    Args:
      x: any pytree.
      hyperparams: (λ, γ), each a scalar or with the structure of x.
      scaling: step.

    Reference: Zou & Hastie, Regularization and variable selection via the elastic net, 2005.
    """
    l1reg, ratio = (1.0, 1.0) if hyperparams is None else hyperparams
    return _by_leaf(lambda x, weight, ratio: _shrink(x, weight) / (1 + weight * ratio), x, scaling, l1reg, ratio)


def prox_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """The prox of g(y) = l2reg·‖y‖² in jaxopt's parametrization: x/(1 + scaling·l2reg).

    In the usual form argmin ½‖y − x‖² + scaling·g(y) this is the prox of l2reg·‖y‖²/2.

    Args:
      x: any pytree.
      l2reg: penalty, a scalar or with the structure of x.
      scaling: step.
    """
    return _by_leaf(lambda x, weight: x / (1 + weight), x, scaling, l2reg)


def prox_non_negative_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """The prox of g(y) = l2reg·‖y‖²/2 on y ≥ 0: max(x, 0)/(1 + scaling·l2reg), with slope 0 at 0.

    Args:
      x: any pytree.
      l2reg: penalty, a scalar or with the structure of x.
      scaling: step.
    """
    return _by_leaf(lambda x, weight: jax.nn.relu(x) / (1 + weight), x, scaling, l2reg)


def prox_group_lasso(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """The prox of g(y) = l2reg·‖y‖₂, with all of x as one group: x·max(1 − scaling·l2reg/‖x‖, 0).

    Use `jax.vmap` for several groups. Differentiable where ‖x‖ ≠ scaling·l2reg; there, and inside, the derivative is 0.

    Args:
      x: any pytree.
      l2reg: penalty, a scalar.
      scaling: step.

    Reference: Yuan & Lin, Model selection and estimation in regression with grouped variables, 2006.
    """
    x = _numeric.as_floats(x)
    length = _tree.norm(x)
    threshold = _numeric.threshold(l2reg, scaling, length)
    outside = length > threshold
    shrink = 1 - threshold / jnp.where(outside, length, 1)
    # Without a penalty the operator is the identity, also at 0.
    return _tree.scale(jnp.where(outside | (threshold == 0), shrink, 0), x)


def prox_log1p(x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0) -> Any:
    """The prox of the log-sum penalty g(y) = Σ λ·log(1 + |y|/ε), which shrinks large entries less than the lasso.

    With τ = scaling·λ the answer has the sign of x and the size ½(|x| − ε + √((|x| + ε)² − 4τ)), or is 0 where that is
    better or the root does not exist. The penalty is not convex: for τ > ε² the operator jumps, and its derivative is that
    of the branch taken.

    Args:
      x: any pytree.
      hyperparams: (λ, ε), each a scalar or with the structure of x, positive.
      scaling: step.

    Reference: Candès, Wakin & Boyd, Enhancing sparsity by reweighted l1 minimization, 2008; Gong et al., A general
    iterative shrinkage and thresholding algorithm, 2013.
    """
    penalty, width = (1.0, 1.0) if hyperparams is None else hyperparams
    return _by_leaf(_shrink_log, x, scaling, penalty, width)


def _shrink_log(x: jax.Array, tau: jax.Array, width: jax.Array) -> jax.Array:
    sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
    size = sign * x
    square = (size + width) ** 2 - 4 * tau
    root = jnp.sqrt(_tree.positive(square))
    # Two forms of the same root, each used where it does not cancel.
    small = size < width
    larger = (
        jnp.where(small, 4 * (size * width - tau) / jnp.where(small, width - size + root, 1), size - width + root) / 2
    )
    candidate = jnp.where((square > 0) & (larger > 0), larger, 0)
    gain = candidate * (candidate / 2 - size) + tau * jnp.log1p(candidate / width)
    return sign * jnp.where(gain < 0, candidate, 0)


def make_prox_from_projection(projection: Callable[..., Any]) -> Callable[..., Any]:
    """The prox of the indicator function of a set, from the projection on it; the step does not matter.

    Args:
      projection: function (x, hyperparams) → x; called as projection(x) if the prox gets no hyperparameters.
    """

    def prox(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
        del scaling
        return projection(x) if hyperparams is None else projection(x, hyperparams)

    return prox
