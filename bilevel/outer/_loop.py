"""The loop: it runs an algorithm's steps, judges each by the failure policy, and knows when to stop."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax

from bilevel import _tree
from bilevel import hypergrad as hypergrads
from bilevel import inner as inners
from bilevel._status import Status, describe
from bilevel._tree import PyTree
from bilevel.outer import _memory
from bilevel.outer._nested import Nested
from bilevel.problem import Problem

OnFailure = Literal["raise", "skip", "warn"]
Row = dict[str, Any]
_log = logging.getLogger("bilevel")
_REPORTED = ("outer_loss", "grad_norm", "inner_residual", "adjoint_residual", "status", "grad_evals", "hvps")


class SolveError(RuntimeError):
    """An inner or an adjoint solve failed and the policy was to raise. The message names the step, the solve, the cause."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returns.

    Attributes:
      hparams: the hyperparameters with the lowest outer loss among the steps whose solves converged.
      params: the inner solution at them.
      outer_loss: the outer loss at both.
      status: why the run ended: "completed" (all steps), "converged" (gtol), "patience", "time_limit", "callback" or
        "non_finite"; from the command line also "interrupted".
      steps: outer steps done.
      best_step: the step at which hparams were found.
      failures: steps with a solve that did not converge.
      history: one row per step with the keys of `metrics.jsonl`; a row's outer_loss is that of the hyperparameters that
        the step started from.
      state: the algorithm's last state.
    """

    hparams: PyTree
    params: PyTree
    outer_loss: float
    status: str
    steps: int
    best_step: int
    failures: int
    history: list[Row]
    state: Any


def minimize(
    problem: Problem,
    hparams: PyTree,
    params: PyTree,
    data: PyTree,
    *,
    inner: inners.InnerSolver | None = None,
    hypergrad: hypergrads.Estimator | None = None,
    optimizer: Any = None,
    steps: int = 100,
    gtol: float = 0.0,
    patience: int | None = None,
    time_limit: float | None = None,
    on_failure: OnFailure = "warn",
    callback: Callable[[Row, Any], Any] | None = None,
) -> Result:
    """Minimize outer_loss(x*(hparams), hparams, data) over hparams by hypergradient steps.

    Args:
      problem: a `Problem`.
      hparams: start of the hyperparameters, any pytree, unconstrained; integer leaves are left alone.
      params: start of the inner variable, any pytree of floating-point arrays.
      data: one pytree of arrays, handed to every function of the problem; a SciPy sparse matrix becomes a
        `jax.experimental.sparse.BCOO`.
      inner: inner solver; default `inner.default(problem)`: L-BFGS for a smooth unconstrained problem, FISTA with a prox or
        a projection.
      hypergrad: estimator; default `hypergrad.Implicit()`.
      optimizer: optax transformation; default `optax.adam(0.1)`.
      steps: outer steps.
      gtol: stop when the hypergradient's norm is at most this.
      patience: stop after this many steps without a new best outer loss.
      time_limit: stop after this many seconds.
      on_failure: when a solve did not converge: "warn" (log it once, use the gradient), "skip" (do not use the gradient;
        the next step goes on from where the solve stopped) or "raise" a `SolveError`. A gradient that is not finite is
        never used: the run ends with status "non_finite", or raises.
      callback: called with (row, state) after every step, row as in `Result.history`; a true value stops the run.

    Returns:
      Result.

    Raises:
      OutOfMemoryError: one step needs more memory than is free.

    Example:
      >>> import jax.numpy as jnp, optax, bilevel as bl
      >>> def inner_loss(params, hparams, data):
      ...     return jnp.sum((params - data) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)
      >>> def outer_loss(params, hparams, data):
      ...     return jnp.sum((params - 1.0) ** 2)
      >>> problem = bl.Problem(inner_loss=inner_loss, outer_loss=outer_loss)
      >>> hparams, params, data = jnp.array(0.0), jnp.zeros(2), jnp.array([2.0, 3.0])
      >>> result = bl.minimize(problem, hparams, params, data, inner=bl.inner.LBFGS(rtol=1e-6),
      ...                      hypergrad=bl.hypergrad.Implicit(linear=bl.linear.CG()), optimizer=optax.adam(0.1), steps=100)
      >>> bool(abs(result.hparams - jnp.log(8 / 5)) < 0.01), result.params.shape, result.status, len(result.history)
      (True, (2,), 'completed', 100)
      >>> bool(abs(bl.minimize(problem, hparams, params, data).hparams - result.hparams) < 1e-3)
      True
    """
    if inner is None:
        inner = inners.default(problem)
    if optimizer is None:
        import optax

        optimizer = optax.adam(0.1)
    algorithm = Nested(problem, inner, hypergrad or hypergrads.Implicit(), optimizer)
    data = _tree.as_data(data)
    state = algorithm.init(hparams, params, data)
    return run_loop(
        algorithm,
        state,
        data,
        steps=steps,
        gtol=gtol,
        patience=patience,
        time_limit=time_limit,
        on_failure=on_failure,
        callback=callback,
    )


def run_loop(
    algorithm: Nested,
    state: Any,
    data: PyTree,
    *,
    steps: int,
    gtol: float = 0.0,
    patience: int | None = None,
    time_limit: float | None = None,
    on_failure: OnFailure = "warn",
    callback: Callable[[Row, Any], Any] | None = None,
    progress: Progress | None = None,
    keep: Callable[[Progress, str | None], str | None] | None = None,
) -> Result:
    """Run an algorithm from a state. Arguments and result as for `minimize`, and:

    Args:
      progress: go on from here instead, a `Progress` of the same algorithm, data and settings.
      keep: called after every step with (progress, status), status None while the run goes on; a text that it returns ends
        the run with that status.
    """
    if on_failure not in ("raise", "skip", "warn"):
        raise ValueError(f"on_failure must be 'raise', 'skip' or 'warn', got {on_failure!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step = jax.jit(algorithm.step)
    done = progress or Progress.start(state)
    state, best, failures, uncertain = done.state, done.best, done.failures, done.uncertain
    history = done.history[: done.steps]
    begun, status = time.perf_counter() - done.seconds, None
    if history:
        status = _stop_reason(history[-1], best.step, steps, gtol, patience, time_limit)
    if status is None:
        _memory.require(step.lower(state, data).compile())  # which the calls below then use
    while status is None:
        following, metrics = step(state, data)
        metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
        row = _row(len(history), metrics, time.perf_counter() - begun)
        history.append(row)
        trouble = _trouble(row, metrics)
        if trouble:
            failures += 1
            if failures == 1 and on_failure != "raise":
                use = "skipped" if on_failure == "skip" else "used as it stands"
                _log.warning("%s Its hypergradient is %s. Further failures are counted, not logged.", trouble, use)
            if on_failure == "skip":
                following = dataclasses.replace(following, hparams=state.hparams, optimizer=state.optimizer)
        elif not uncertain and abs(metrics["outer_error"]) > 0.01 * abs(row["outer_loss"]):
            uncertain = True
            _log.warning(
                "outer step %d: the inner solution met its tolerance, yet the outer loss is off by an estimated %.1g of %.3g, "
                "and the hypergradient may be worse: lower inner.rtol, or use float64",
                *(row["step"], metrics["outer_error"], row["outer_loss"]),
            )
        best = best.updated(row, state.hparams, following.params, failed=bool(trouble))
        state = following
        if callback is not None and callback(row, state):
            status = "callback"
        if trouble and on_failure == "raise":
            raise SolveError(trouble)
        status = status or _stop_reason(row, best.step, steps, gtol, patience, time_limit)
        if keep is not None:
            now = Progress(state, best, failures, uncertain, row["seconds"], len(history), history)
            status = keep(now, status) or status
    return Result(
        hparams=best.hparams,
        params=best.params,
        outer_loss=best.outer_loss,
        status=status,
        steps=len(history),
        best_step=best.step,
        failures=failures,
        history=history,
        state=state,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Best:
    hparams: PyTree
    params: PyTree
    outer_loss: float = math.inf
    step: int = 0
    trusted: bool = False

    def updated(self, row: Row, hparams: PyTree, params: PyTree, failed: bool) -> _Best:
        """The better of the two; a step whose solves converged beats any that did not."""
        loss, trusted = row["outer_loss"], not failed
        if not math.isfinite(loss) or (self.trusted and not trusted):
            return self
        if loss < self.outer_loss or (trusted and not self.trusted):
            return _Best(hparams, params, loss, row["step"], trusted)
        return self


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "best", "failures", "uncertain", "seconds", "steps"],
    meta_fields=["history"],
)
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a step: a pytree, from which `run_loop` goes on as if it had not stopped.

    Attributes:
      state: the algorithm's state.
      best: the best hyperparameters so far, their inner solution, outer loss and step.
      failures: steps with a solve that did not converge.
      uncertain: whether the warning about an inexact outer loss was given.
      seconds: spent so far.
      steps: done so far.
      history: the rows, of which the first `steps` count; no part of the pytree.
    """

    state: Any
    best: _Best
    failures: int
    uncertain: bool
    seconds: float
    steps: int
    history: list[Row]

    @classmethod
    def start(cls, state: Any) -> Progress:
        """Before the first step, from an algorithm's first state."""
        return cls(state, _Best(state.hparams, state.params), 0, False, 0.0, 0, [])


def _row(number: int, metrics: Row, seconds: float) -> Row:
    inner, adjoint = Status(metrics["inner_status"]), Status(metrics["adjoint_status"])
    status = Status.CONVERGED.word
    if inner != Status.CONVERGED:
        status = f"inner {inner.word}"
    elif adjoint != Status.CONVERGED:
        status = f"adjoint {adjoint.word}"
    metrics = {**metrics, "status": status}
    return {"step": number, **{name: metrics[name] for name in _REPORTED}, "seconds": seconds}


def _stop_reason(
    row: Row, best_step: int, steps: int, gtol: float, patience: int | None, time_limit: float | None
) -> str | None:
    if not _finite(row):
        return "non_finite"
    if row["grad_norm"] <= gtol and row["status"] == Status.CONVERGED.word:
        return "converged"
    if patience is not None and row["step"] - best_step >= patience:
        return "patience"
    if time_limit is not None and row["seconds"] >= time_limit:
        return "time_limit"
    return "completed" if row["step"] + 1 >= steps else None


def _finite(row: Row) -> bool:
    return math.isfinite(row["outer_loss"]) and math.isfinite(row["grad_norm"])


def _trouble(row: Row, metrics: Row) -> str | None:
    """A sentence or two on what failed in a step, or None."""
    for which in ("inner", "adjoint"):
        code = metrics[f"{which}_status"]
        if code != Status.CONVERGED:
            residual = metrics[f"{which}_residual"]
            return (
                f"outer step {row['step']}: the {which} solve did not converge (residual {residual:.2g}). "
                f"{describe(code)}."
            )
    if not _finite(row):
        return f"outer step {row['step']}: the hypergradient is not finite though both solves converged."
    return None
