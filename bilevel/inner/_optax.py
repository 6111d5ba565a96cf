"""Optax's optimizers under the contract, on all samples or on minibatches."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, Progress
from bilevel.inner._judge import reach
from bilevel.inner._needs import LOSS, NO_CONSTRAINTS, Need


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    optimizer: PyTree
    reach: jax.Array
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optax(InnerSolver):
    """Any optax optimizer, each update followed by the problem's projection or prox.

    With `batch_size` a step is an epoch: one update for each minibatch of a fresh permutation of the samples, the last one
    smaller where the sizes do not divide. Needs `Problem.samples` and `Problem.batch_loss`, which a `linear_model` implies.
    The stopping test, that of all solvers, takes all samples once per step; with `variance_reduction` that gradient
    corrects those of the minibatches (SVRG), so that a constant learning rate converges. An optimizer with too large a learning
    rate ends as `MAX_STEPS`. A prox is exact only for gradient descent with the same step: give `prox_step`, or prefer `FISTA`.

    Args:
      optimizer: a `GradientTransformation`, such as `optax.adam(1e-2)`.
      max_steps: updates, or with minibatches epochs.
      batch_size: samples of a minibatch; None takes all.
      variance_reduction: g_B(x) − g_B(x̃) + g(x̃) in place of g_B(x), x̃ the point at which the epoch began.
      seed: of the permutations.
      prox_step: the step of the prox: the learning rate of gradient descent, over 1 − momentum. None: 1/L.

    Reference: Johnson & Zhang 2013 (SVRG).
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, NO_CONSTRAINTS)

    optimizer: Any
    max_steps: int = 10_000
    batch_size: int | None = None
    variance_reduction: bool = False
    seed: int = 0
    prox_step: float | None = None

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive("inner.Optax", batch_size=self.batch_size, prox_step=self.prox_step)
        if not (callable(getattr(self.optimizer, "init", None)) and callable(getattr(self.optimizer, "update", None))):
            raise TypeError(
                f"inner.Optax: optimizer must be an optax GradientTransformation, such as optax.adam(1e-2), got "
                f"{self.optimizer!r}"
            )
        if self.variance_reduction and self.batch_size is None:
            raise ValueError(
                "inner.Optax: variance_reduction corrects minibatches: give batch_size too, or leave it out"
            )

    def check(self, problem):
        """Require an inner loss, and for minibatches one of single samples."""
        super().check(problem)
        if self.batch_size is not None:
            _checks.require_parts("inner.Optax with a batch_size", problem, "samples", "batch_loss")

    def init(self, problem, params, hparams, data):
        """The optimizer's state, and 1/L for the stopping test."""
        evals = int(problem.lipschitz is None)
        optimizer = _tree.as_arrays(self.optimizer.init(params))
        step = reach(problem, params, hparams, data)
        return _State(params, optimizer, step, Progress.start(_tree.dtype(params), evals, evals))

    def step(self, problem, state, hparams, data):
        """One update, or one epoch; a point that passes the stopping test is kept, with the derivative of the update."""
        x = state.params

        def loss(x):
            return problem.inner_loss(x, hparams, data)

        def follow(x, optimizer, value, gradient, value_fn):
            """One update, and what it leaves feasible."""
            import optax

            update = optax.with_extra_args_support(self.optimizer).update
            updates, moved = update(gradient, optimizer, x, value=value, grad=gradient, value_fn=value_fn)
            x = _tree.cast_like(optax.apply_updates(x, updates), x)
            length = state.reach if self.prox_step is None else jnp.asarray(self.prox_step, state.reach.dtype)
            return problem.proximal_step(x, hparams, data, length), _tree.cast_like(moved, optimizer)

        value, gradient = jax.value_and_grad(loss)(x)
        pushed = problem.proximal_step(_tree.add_scaled(x, -state.reach, gradient), hparams, data, state.reach)
        passes = 0
        if self.batch_size is None:
            moved, optimizer = follow(x, state.optimizer, value, gradient, loss)
        else:
            moved, optimizer = self._epoch(problem, state, gradient, follow, hparams, data)
            passes = 2 if self.variance_reduction else 1
        progress = self.advance(state.progress, x, _tree.norm(_tree.sub(pushed, x)), grad_evals=1 + passes)
        held = _tree.with_derivative_of(moved, x)
        x = _tree.where(progress.status == Status.CONVERGED, held, moved)
        return _State(x, optimizer, state.reach, progress)

    def _epoch(self, problem, state, full_gradient, follow, hparams, data):
        """An update for each minibatch of a permutation."""
        samples = problem.samples(data)
        size = min(self.batch_size or samples, samples)
        key = jax.random.fold_in(jax.random.key(self.seed), state.progress.steps)
        order = jax.random.permutation(key, samples)
        anchor = state.params

        def update(carry, index):
            x, optimizer = carry

            def loss(x):
                return problem.batch_loss(x, hparams, data, index)

            value, gradient = jax.value_and_grad(loss)(x)
            if self.variance_reduction:
                correction = _tree.sub(full_gradient, jax.grad(loss)(anchor))
                gradient = _tree.add_scaled(gradient, 1, correction)
            return follow(x, optimizer, value, gradient, loss), None

        whole = samples // size
        batches = order[: whole * size].reshape(whole, size)
        carry, _ = jax.lax.scan(update, (anchor, state.optimizer), batches)
        return carry if whole * size == samples else update(carry, order[whole * size :])[0]
