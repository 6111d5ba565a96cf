"""Checks that all statements of one problem agree.

Two statements f₁ + g₁ and f₂ + g₂ (a set is the g of its indicator) are compared at points p = prox₁(v). There
ζ₁ = (v − p)/s is a subgradient of g₁, so that ∇f₁ + ζ₁ is a subgradient of the whole objective. If both objectives are the
same up to a constant, then ζ₂ = ∇f₁ + ζ₁ − ∇f₂ is a subgradient of g₂ at p, that is p = prox₂(p + sζ₂). The error of this
equation, relative to the size of its terms, is the disagreement. How a statement splits its objective does not matter. For
the constraints of a quadratic program, ζ₂ must be a combination of the gradients of the active ones, and p feasible.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _compiled, _tree, linear
from bilevel._tree import PyTree
from bilevel.problem import Problem
from bilevel.statements import Minimization, Parts

_POINTS = 2


class _Comparison(NamedTuple):
    """The disagreement of two statements, and both values and gradient norms at the start."""

    disagreement: jax.Array
    values: tuple[jax.Array, jax.Array]
    slopes: tuple[jax.Array, jax.Array]


def check_statements(problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> None:
    """Compare the statements of a problem with each other, and the mean over minibatches with the whole.

    Args:
      problem: what is stated; nothing is compared if it is stated once.
      params, hparams, data: concrete arrays, the start of a solve.

    Raises:
      ValueError: two statements contradict each other; the message has the value and the slope of both at the start.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> twice = bl.Problem(inner_loss=lambda x, h, d: jnp.sum(x**2) / 2, residuals=lambda x, h, d: 2 * x)
      >>> try:
      ...     bl.inner.check_statements(twice, jnp.ones(2), None, None)
      ... except ValueError as error:
      ...     print(str(error)[:55])
      Problem: residuals and inner_loss contradict each other
    """
    if not _pairs(problem) and problem.batches is None:
        return
    found = jax.device_get(_compiled.compiled(_compare, problem)(params, hparams, data))
    allowed = _tree.eps(params) ** 0.4
    for name, comparison in found.items():
        if not comparison.disagreement <= allowed:
            (one, two), (slope, other) = comparison.values, comparison.slopes
            raise ValueError(
                f"Problem: {name} and inner_loss contradict each other: at the start inner_loss has the value {one:.6g} and a "
                f"gradient of norm {slope:.6g}, {name} the value {two:.6g} and a gradient of norm {other:.6g} (the values may "
                f"differ by a constant), and they disagree by {comparison.disagreement:.1%}: state the same problem both times, "
                "or leave one out"
            )


def _pairs(problem: Problem) -> dict[str, Parts]:
    """The further statements that can be compared with the first, by their names."""
    found = {}
    parts = problem.parts
    if parts.kind not in ("free", "set"):
        return found
    own_set = {"prox": parts.prox, "projection": parts.projection}
    for number, statement in enumerate(problem.further_statements()):
        if statement.inner_loss is None:
            continue
        if number < len(problem.also):
            found[f"also[{number}]"] = statement
        elif statement.linear_model is not None:
            found["linear_model"] = statement
        else:
            found["residuals"] = Parts(inner_loss=statement.inner_loss, **own_set)
    if parts.datafit is not None and parts.linear_model is None:
        fitted = Minimization(datafit=parts.datafit, design=parts.design).fitted
        found["datafit"] = Parts(inner_loss=fitted, **own_set)
    return found


def _compare(problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> dict[str, _Comparison]:
    found = {
        name: _compared(problem.parts, statement, params, hparams, data) for name, statement in _pairs(problem).items()
    }
    if problem.batches is not None:
        found["batches"] = _by_batches(problem.parts, params, hparams, data)
    return found


def _compared(one: Parts, two: Parts, params: PyTree, hparams: PyTree, data: PyTree) -> _Comparison:
    losses = [lambda x, parts=parts: parts.inner_loss(x, hparams, data) for parts in (one, two)]
    values, slopes = zip(*(jax.value_and_grad(loss)(params) for loss in losses), strict=True)
    worst = jnp.zeros((), _tree.dtype(params))
    for seed in range(_POINTS):
        v = _nearby(params, seed)
        _, hvp = jax.linearize(jax.grad(losses[0]), params)
        curvature = _tree.norm(hvp(v)) / _tree.norm(v)
        s = 1 / _tree.positive(curvature).astype(worst.dtype)
        p = _tree.cast_like(_prox(one, v, hparams, data, s), params)
        zeta = _tree.scale(1 / s, _tree.sub(v, p))
        first, second = (jax.grad(loss)(p) for loss in losses)
        other = _tree.add_scaled(_tree.sub(first, second), 1, zeta)
        size = _tree.norm(first) + _tree.norm(second) + _tree.norm(zeta) + _tree.norm(p) / s
        if two.constrained:
            missing = _outside(two, p, other, s, hparams, data)
        else:
            moved = _prox(two, _tree.add_scaled(p, s, other), hparams, data, s)
            missing = _tree.norm(_tree.sub(_tree.cast_like(moved, p), p)) / s
        worst = jnp.maximum(worst, missing / _tree.positive(size))
    return _Comparison(worst, values, (_tree.norm(slopes[0]), _tree.norm(slopes[1])))


def _prox(parts: Parts, v: PyTree, hparams: PyTree, data: PyTree, step: jax.Array) -> PyTree:
    if parts.prox is not None:
        return parts.prox(v, hparams, data, step)
    return v if parts.projection is None else parts.projection(v, hparams, data)


def _outside(parts: Parts, p: PyTree, zeta: PyTree, s: jax.Array, hparams: PyTree, data: PyTree) -> jax.Array:
    """The part of ζ outside the span of the active constraints' gradients, plus the violation of the constraints at p over s."""

    def constraints(x: PyTree) -> tuple[PyTree, PyTree]:
        return parts.equality(x, hparams, data), parts.inequality(x, hparams, data)

    (equal, below), pull = jax.vjp(constraints, p)
    root = jnp.asarray(_tree.eps(p), _tree.dtype(p)) ** 0.5
    size = jnp.maximum(_tree.norm(p), 1)
    active = jax.tree.map(lambda g: (g > -root * size).astype(g.dtype), below)

    def combined(multipliers: tuple[PyTree, PyTree]) -> PyTree:
        nu, lam = multipliers
        return pull((nu, jax.tree.map(jnp.multiply, active, lam)))[0]

    push = jax.linear_transpose(combined, (equal, below))
    operator = linear.Operator(lambda m: push(combined(m))[0], "positive_definite")
    multipliers = linear.CG(rtol=1e-6, max_steps=200).solve(operator, push(zeta)[0]).value
    violation = _tree.norm(equal) + _tree.norm(jax.tree.map(lambda g: jnp.maximum(g, 0), below))
    return _tree.norm(_tree.sub(zeta, combined(multipliers))) + violation / s


def _by_batches(parts: Parts, params: PyTree, hparams: PyTree, data: PyTree) -> _Comparison:
    """The gradient on two halves of the rows, averaged, against the gradient on all."""
    rows = parts.samples(data)
    x = _nearby(params, 0)
    value, whole = jax.value_and_grad(parts.inner_loss)(x, hparams, data)
    mean, average = jnp.zeros_like(value), _tree.zeros_like(whole)
    for half in jnp.split(jnp.arange(rows), [rows // 2] if rows > 1 else 1):
        share = half.size / rows
        part, slope = jax.value_and_grad(parts.batch_loss)(x, hparams, data, half)
        mean, average = mean + share * part, _tree.add_scaled(average, share, slope)
    missing = _tree.norm(_tree.sub(whole, average)) / _tree.positive(_tree.norm(whole) + _tree.norm(average))
    return _Comparison(missing, (value, mean), (_tree.norm(whole), _tree.norm(average)))


def _nearby(params: PyTree, seed: int) -> PyTree:
    """params plus a fixed random vector about as large."""
    drawn = optax.tree.random_like(jax.random.key(seed), params)
    size, norm = _tree.norm(params), _tree.norm(drawn)
    return _tree.add_scaled(params, jnp.where(size > 0, size / norm, 1), drawn)
