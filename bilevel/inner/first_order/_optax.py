"""Optax's optimizers as inner solvers, on all samples or on minibatches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._curvature import unit_step
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress, hold
from bilevel.inner._judge import gradient_step
from bilevel.problem import At, Problem


class _State(NamedTuple):
    params: PyTree
    optimizer: PyTree
    test_step: jax.Array  # 1/L, the step of the stopping test
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optax(InnerSolver):
    """Any optax optimizer, each update followed by the problem's projection or prox.

    With `batch_size` a step is an epoch: one update for each minibatch of a fresh permutation of the samples, the last one
    smaller if the sizes do not divide. Needs `Problem.batches` or a `linear_model`. Under an outer loop the permutations are
    drawn anew in every outer step, from the key of that step (`At.key`). An optimizer with too large a learning rate ends as
    `MAX_STEPS`. A prox is exact only for gradient descent with the same step: give `prox_step`, or prefer `FISTA`.

    Args:
      rtol, atol: as for `InnerSolver`; the test takes the gradient on all samples once per step.
      max_steps: limit on updates, or with minibatches on epochs.
      optimizer: a `GradientTransformation`, such as `optax.adam(1e-2)`.
      batch_size: samples in a minibatch; None takes all.
      variance_reduction: g_B(x) − g_B(x̃) + g(x̃) in place of g_B(x), x̃ the point at which the epoch began (SVRG), so that a
        constant learning rate converges.
      seed: seed of the permutations, together with the key of an outer step.
      prox_step: the step of the prox: the learning rate of gradient descent, over 1 − momentum. None: 1/L.

    Raises:
      TypeError: optimizer is not a GradientTransformation.
      ValueError: variance_reduction without batch_size; a setting that must be positive.

    Reference: Johnson & Zhang 2013 (SVRG).

    Example:
      >>> import jax.numpy as jnp, optax, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> solver = bl.inner.Optax(optimizer=optax.sgd(0.1))
      >>> print(solver.solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    positive = ("batch_size", "prox_step")

    optimizer: Any
    max_steps: int = 10_000
    batch_size: int | None = None
    variance_reduction: bool = False
    seed: int = 0
    prox_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (callable(getattr(self.optimizer, "init", None)) and callable(getattr(self.optimizer, "update", None))):
            raise TypeError(
                f"inner.Optax: optimizer must be an optax GradientTransformation, such as optax.adam(1e-2), got "
                f"{self.optimizer!r}"
            )
        if self.variance_reduction and self.batch_size is None:
            raise ValueError(
                "inner.Optax: variance_reduction corrects minibatches: give batch_size too, or leave it out"
            )

    def check(self, problem: Problem) -> None:
        """Require an inner loss, and for minibatches one of single samples."""
        super().check(problem)
        if self.batch_size is not None and problem.parts.batch_loss is None:
            raise ValueError(
                "inner.Optax with a batch_size needs minibatches, and this problem states none: add "
                'batches=bilevel.Batches("train"), or leave batch_size out'
            )

    def init(self, at: At, params: PyTree) -> _State:
        """The optimizer's state, and 1/L for the stopping test."""
        evals = int(at.parts.lipschitz is None)
        optimizer = _tree.as_arrays(self.optimizer.init(params))
        step = unit_step(at, params)
        return _State(params, optimizer, step, SolveProgress.start(_tree.dtype(params), evals, evals))

    def step(self, at: At, state: _State) -> _State:
        """One update, or one epoch; a point that passes the stopping test is kept, with the derivative of the update."""
        x = state.params

        def follow(
            x: PyTree, optimizer: PyTree, value: jax.Array, gradient: PyTree, value_fn: Callable[[PyTree], jax.Array]
        ) -> tuple[PyTree, PyTree]:
            """One update, made feasible."""
            update = optax.with_extra_args_support(self.optimizer).update
            updates, moved = update(gradient, optimizer, x, value=value, grad=gradient, value_fn=value_fn)
            x = _tree.cast_like(optax.apply_updates(x, updates), x)
            length = state.test_step if self.prox_step is None else jnp.asarray(self.prox_step, state.test_step.dtype)
            return at.proximal_step(x, length), _tree.cast_like(moved, optimizer)

        value, gradient = jax.value_and_grad(at.inner_loss)(x)
        pushed = gradient_step(at, x, state.test_step, gradient)
        passes = 0
        if self.batch_size is None:
            moved, optimizer = follow(x, state.optimizer, value, gradient, at.inner_loss)
        else:
            moved, optimizer = self._epoch(at, state, gradient, follow)
            passes = 2 if self.variance_reduction else 1
        progress = self.advance(state.progress, x, _tree.norm(_tree.sub(pushed, x)), grad_evals=1 + passes)
        return _State(hold(progress, x, moved, moved), optimizer, state.test_step, progress)

    def _epoch(
        self, at: At, state: _State, full_gradient: PyTree, follow: Callable[..., tuple[PyTree, PyTree]]
    ) -> tuple[PyTree, PyTree]:
        """An update for each minibatch of a permutation."""
        samples = at.samples()
        size = min(self.batch_size or samples, samples)
        key = jax.random.key(self.seed)
        if at.key is not None:
            key = jax.random.fold_in(key, jax.random.bits(at.key))
        order = jax.random.permutation(jax.random.fold_in(key, state.progress.steps), samples)
        anchor = state.params

        def update(carry: tuple[PyTree, PyTree], index: jax.Array) -> tuple[tuple[PyTree, PyTree], None]:
            x, optimizer = carry

            def loss(x: PyTree) -> jax.Array:
                return at.batch_loss(x, index)

            value, gradient = jax.value_and_grad(loss)(x)
            if self.variance_reduction:
                correction = _tree.sub(full_gradient, jax.grad(loss)(anchor))
                gradient = _tree.add_scaled(gradient, 1, correction)
            return follow(x, optimizer, value, gradient, loss), None

        whole = samples // size
        batches = order[: whole * size].reshape(whole, size)
        carry, _ = jax.lax.scan(update, (anchor, state.optimizer), batches)
        return carry if whole * size == samples else update(carry, order[whole * size :])[0]
