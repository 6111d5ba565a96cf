"""The loop: it runs an algorithm's steps, judges each by the failure policy, and knows when to stop."""

import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import jax
import optax

from bilevel import _compiled, _tree
from bilevel import hypergrad as hypergrads
from bilevel import inner as inners
from bilevel._status import FINE
from bilevel._tree import PyTree
from bilevel.hypergrad import Reason, Verdict
from bilevel.outer import _memory
from bilevel.outer._nested import Nested
from bilevel.outer._progress import Progress, Row, finite, read
from bilevel.outer._report import Algorithm, Report
from bilevel.problem import Problem

S = TypeVar("S")
OnFailure = Literal["raise", "skip", "warn"]
_log = logging.getLogger("bilevel")


class SolveError(RuntimeError):
    """A solve failed and `on_failure` is "raise". The message names the step, the solve and the cause.

    Example:
      >>> import bilevel as bl
      >>> issubclass(bl.outer.SolveError, RuntimeError)
      True
    """


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
      hparams: the hyperparameters with the lowest sum of outer loss and its estimated error; those of the last step where the
        outer loss is that of minibatches. A step with a failed solve counts if its error was estimated, or if there is no other.
      params: the inner solution at them.
      outer_loss: the outer loss at both.
      status: why the run ended: "completed" (all steps), "converged" (gtol), "patience", "time_limit", "callback" or
        "non_finite"; from the command line also "interrupted".
      steps: outer steps done.
      best_step: the step at which hparams were found.
      failures: steps with a solve that did not converge, or with a hypergradient whose verdict is "failed".
      verdicts: the number of steps with each verdict on their hypergradient, `trusted`, `doubtful` or `failed`.
      history: one row per step with the keys of `metrics.jsonl`; a row describes the hyperparameters from which its step started.
      state: the algorithm's last state.

    Example:
      >>> import bilevel as bl
      >>> result = bl.minimize(bl.Problem(lambda x, h, d: (x - h) ** 2, lambda x, h, d: x**2), 1.0, 0.0, None, steps=3)
      >>> result.status, result.steps, result.best_step, result.failures, [row["step"] for row in result.history]
      ('completed', 3, 2, 0, [0, 1, 2])
    """

    hparams: PyTree
    params: PyTree
    outer_loss: float
    status: str
    steps: int
    best_step: int
    failures: int
    verdicts: dict[str, int]
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
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
    gtol: float = 0.0,
    patience: int | None = None,
    time_limit: float | None = None,
    on_failure: OnFailure = "warn",
    callback: Callable[[Row, Any], Any] | None = None,
    key: jax.Array | None = None,
) -> Result:
    """Minimize outer_loss(x*(hparams), hparams, data) over hparams by hypergradient steps.

    Args:
      problem: a `Problem`.
      hparams: start of the hyperparameters, any pytree, unconstrained; integer leaves are left alone.
      params: start of the inner variable, any pytree of floating-point arrays.
      data: one pytree of arrays, passed to every function of the problem; a SciPy sparse matrix becomes a
        `jax.experimental.sparse.BCOO`.
      inner: inner solver; default `inner.default(problem)`: L-BFGS for a smooth unconstrained problem, FISTA with a prox or
        a projection.
      hypergrad: estimator; default `hypergrad.Implicit()`.
      optimizer: optax transformation; default `optax.adam(0.1)`.
      steps: outer steps.
      gtol: stop when the hypergradient's norm is at most this, at a step without a failed solve; 0 never stops.
      patience: stop after this many steps without a new best outer loss.
      time_limit: stop after this many seconds.
      on_failure: when a solve did not converge: "warn" (log it once, use the gradient), "skip" (do not use the gradient;
        the next step goes on from where the solve stopped) or "raise" a `SolveError`. A gradient that is not finite is
        never used: the run ends with status "non_finite", or raises.
      key: a JAX random key, for estimators that draw; None is `jax.random.key(0)`.
      callback: called with (row, state) after every step, row as in `Result.history`; a true value stops the run.

    Raises:
      ValueError, TypeError: parts that do not go together, or start values that cannot be optimized.
      OutOfMemoryError: one step needs more memory than is free.

    Example:
      >>> import jax.numpy as jnp, optax, bilevel as bl
      >>> def inner_loss(params, hparams, data):
      ...     return jnp.sum((params - data) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)
      >>> def outer_loss(params, hparams, data):
      ...     return jnp.sum((params - 1.0) ** 2)
      >>> problem = bl.Problem(inner_loss, outer_loss)
      >>> result = bl.minimize(problem, jnp.array(0.0), jnp.zeros(2), jnp.array([2.0, 3.0]), optimizer=optax.adam(0.1), steps=100)
      >>> bool(abs(result.hparams - jnp.log(8 / 5)) < 0.01), result.status          # x* = data/(1 + exp θ)
      (True, 'completed')
    """
    algorithm = Nested(
        problem, inner or inners.default(problem), hypergrad or hypergrads.Implicit(), optimizer or optax.adam(0.1)
    )
    data = _tree.as_data(data)
    state = algorithm.init(hparams, params, data, key)
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
        examine=algorithm.examine,
    )


def run_loop(
    algorithm: Algorithm[S],
    state: S,
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
    examine: Callable[[S, PyTree], Verdict | None] | None = None,
) -> Result:
    """Run an algorithm from a state. Arguments, errors and result as for `minimize`, and:

    Args:
      algorithm: an object with the methods of `bilevel.outer.Algorithm`.
      state: its first state.
      progress: resume from this `Progress` of the same algorithm, data and settings; `state` is then not used.
      keep: called after every step with (progress, status), status None while the run continues; a string that it returns
        ends the run with that status.
      examine: makes the full verdict on a step whose cheap verdict is not sure, from the state before it and the data:
        `Nested.examine`. It is compiled when it is first needed. None leaves such steps doubtful.

    Example:
      >>> import jax.numpy as jnp, optax, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: (x - h) ** 2, lambda x, h, d: x**2)
      >>> algorithm = bl.outer.Nested(problem, bl.inner.Newton(), bl.hypergrad.Implicit(), optax.sgd(0.4))
      >>> state = algorithm.init(jnp.array(1.0), jnp.array(0.0), None)
      >>> bl.outer.run_loop(algorithm, state, None, steps=50, gtol=1e-3).status
      'converged'
    """
    if on_failure not in ("raise", "skip", "warn"):
        raise ValueError(f"on_failure must be 'raise', 'skip' or 'warn', got {on_failure!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step = _compiled.compiled(_step, algorithm)
    full = None if examine is None else _compiled.compiled(_call, examine)
    done = progress or Progress.start(algorithm, state)
    state, best, failures, history = done.state, done.best, done.failures, done.history[: done.steps]
    begun, said = time.perf_counter() - done.seconds, set()
    stop = functools.partial(_stop_reason, steps=steps, gtol=gtol, patience=patience, time_limit=time_limit)
    status = stop(history[-1], best.step) if history else None
    if status is None:
        _memory.require(step.lower(state, data).compile())  # the calls below use the same executable
    while status is None:
        following, report = step(state, data)
        if full is not None and report.verdict is not None and report.verdict.reason == Reason.UNEXAMINED:
            report = dataclasses.replace(report, verdict=full(state, data) or report.verdict)
        row, trouble = read(report, len(history), time.perf_counter() - begun)
        history.append(row)
        best = best.updated(row, algorithm.point(following, state), trouble is not None, report.exact)
        for kind, text in _remarks(row, trouble, on_failure):
            if kind not in said:
                _log.warning(text)
            said.add(kind)
        failures += trouble is not None
        state = algorithm.hold(following, state) if trouble and on_failure == "skip" else following
        if callback is not None and callback(row, state):
            status = "callback"
        if trouble and on_failure == "raise":
            raise SolveError(trouble)
        status = status or stop(row, best.step)
        if keep is not None:
            now = Progress(state, best, failures, row["seconds"], len(history), history)
            status = keep(now, status) or status
    found = best.hparams, best.params, best.outer_loss
    verdicts = dict(Counter(row["verdict"] for row in history))
    return Result(*found, status, len(history), best.step, failures, verdicts, history, state)


def _step(algorithm: Algorithm[S], state: S, data: PyTree) -> tuple[S, Report]:
    return algorithm.step(state, data)


def _call(function: Callable[[S, PyTree], Verdict | None], state: S, data: PyTree) -> Verdict | None:
    return function(state, data)


def _stop_reason(
    row: Row, best_step: int, *, steps: int, gtol: float, patience: int | None, time_limit: float | None
) -> str | None:
    if not finite(row):
        return "non_finite"
    if gtol and row["grad_norm"] <= gtol and row["status"] in FINE:
        return "converged"
    if patience is not None and row["step"] - best_step >= patience:
        return "patience"
    if time_limit is not None and row["seconds"] >= time_limit:
        return "time_limit"
    return "completed" if row["step"] + 1 >= steps else None


def _remarks(row: Row, trouble: str | None, on_failure: OnFailure) -> Iterator[tuple[str, str]]:
    """Messages about a step by their kind, each of which is logged once in a run."""
    if trouble:
        if on_failure != "raise":
            use = "skipped" if on_failure == "skip" else "used as it stands"
            yield "trouble", f"{trouble} Its hypergradient is {use}. Further failures are counted, not logged."
        return
    if "reason" in row:
        yield (
            row["reason"],
            f"outer step {row['step']}: the hypergradient is doubtful: {row['reason']}. Such steps are counted.",
        )
    if row["grad_norm"] == 0:
        yield (
            "still",
            f"outer step {row['step']}: the hypergradient is exactly zero, so that no hyperparameter moves: the outer loss does "
            "not depend on them here (as where a penalty leaves no coefficient); start elsewhere",
        )
    if abs(row["outer_error"]) > 0.01 * abs(row["outer_loss"]):
        yield (
            "uncertain",
            f"outer step {row['step']}: the inner solution met its tolerance, yet the outer loss is off by an estimated "
            f"{row['outer_error']:.1g} of {row['outer_loss']:.3g}, and the hypergradient may be worse: lower inner.rtol, or use "
            "float64",
        )
