"""What external solvers share: one call of foreign code on NumPy arrays, the checks of what comes back, the verdict."""

from __future__ import annotations

import abc
import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, SolveProgress
from bilevel.inner._judge import judge
from bilevel.inner.external import _callback
from bilevel.problem import At

_log = logging.getLogger("bilevel")
_said: set[tuple[str, str]] = set()


class Answer(NamedTuple):
    """What foreign code found, and what it took: iterations, and evaluations of the gradient."""

    params: PyTree
    steps: int = 1
    grad_evals: int = 0


Foreign = Callable[[PyTree, PyTree], Answer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _External(InnerSolver):
    """A solver of another package as a black box, under `jit` and `vmap` too.

    One step is the whole solve, in double precision on the host. Its answer is judged like every solver's: status
    `CONVERGED`, or `NOT_A_SOLUTION`; an exception gives `EXTERNAL_ERROR`, an answer of another structure or shape
    `WRONG_OUTPUT`, both with a line in the log "bilevel". It is not differentiated: a derivative of `solve` is NaN. Use
    `hypergrad.Implicit`, or `custom_root` around it.

    Args:
      max_steps: limit of the foreign solver's own iterations.
    """

    differentiable: ClassVar[bool] = False

    max_steps: int = 10_000

    @abc.abstractmethod
    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        """The foreign code as a function of (start, inputs) on NumPy arrays, and its inputs, computed by JAX."""

    def init(self, at: At, params: PyTree) -> PlainState:
        """Nothing to prepare."""
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def step(self, at: At, state: PlainState) -> PlainState:
        """The whole solve, and its verdict."""
        start, frozen = jax.lax.stop_gradient((state.params, at))
        foreign, inputs = self._foreign(frozen, start)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), start)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        found, code, steps, evals = _callback.call(
            lambda start, inputs: self._guarded(foreign, start, inputs), (shapes, count, count, count), start, inputs
        )
        distance, size = judge(frozen, found)
        progress = self.advance(
            state.progress,
            found,
            distance,
            size=size,
            grad_evals=evals + 1,
            hvps=1,
            failed=True,
            failure=Status.NOT_A_SOLUTION,
        )
        status = jnp.where(code == Status.CONVERGED, progress.status, code)
        progress = dataclasses.replace(progress, status=status, steps=state.progress.steps + steps)
        return PlainState(_not_differentiable(found, (at.hparams, at.data)), progress)

    def _guarded(self, foreign: Foreign, start: PyTree, inputs: PyTree) -> tuple[PyTree, ...]:
        """The answer in the dtypes of the start, a status, and the counts; whatever happens."""
        own = jax.tree.map(np.copy, _callback.in_double(start))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # the verdict says what a solver's warnings would
                answer = foreign(own, _callback.in_double(inputs))
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}; the start was returned")
            return _returned(start, Status.EXTERNAL_ERROR)
        if not _fits(answer.params, start):
            expected, got = _tree.shapes(start), _describe(answer.params)
            self._say(f"the answer must have the structure and shapes of params, {expected}, and is {got}")
            return _returned(start, Status.WRONG_OUTPUT)
        with np.errstate(over="ignore"):
            found = jax.tree.map(lambda a, b: np.asarray(a, b.dtype), answer.params, start)
        return _returned(found, Status.CONVERGED, answer.steps, answer.grad_evals)

    def _say(self, text: str) -> None:
        """Log a message, once for each solver and each text but for the numbers in it."""
        key = type(self).__name__, re.sub(r"\d+", "#", text)
        if key not in _said:
            _said.add(key)
            _log.warning("inner.%s: %s. Further messages of this kind are not logged.", type(self).__name__, text)


def _returned(params: PyTree, status: Status, steps: int = 1, grad_evals: int = 0) -> tuple[PyTree, ...]:
    return (params, *(np.int32(n) for n in (status, max(steps, 1), grad_evals)))


def _fits(found: PyTree, start: PyTree) -> bool:
    """Whether both have the same structure and shapes, and what was found is floating-point."""
    if jax.tree.structure(found) != jax.tree.structure(start):
        return False
    try:
        arrays = [np.asarray(a) for a in jax.tree.leaves(found)]
    except (TypeError, ValueError):
        return False
    pairs = zip(arrays, jax.tree.leaves(start), strict=True)
    return all(a.dtype.kind == "f" and a.shape == b.shape for a, b in pairs)


def _describe(found: Any) -> str:
    def leaf(a):
        shape = getattr(a, "shape", None)
        return type(a).__name__ if shape is None else f"{getattr(a, 'dtype', type(a).__name__)}{list(shape)}"

    return "None" if found is None else str(jax.tree.map(leaf, found)).replace("'", "")


def _not_differentiable(value: PyTree, inputs: PyTree) -> PyTree:
    """The value, whose derivative with respect to the inputs is NaN rather than a silent zero."""
    moving = [a for a in jax.tree.leaves(inputs) if _tree.is_inexact(a)]

    @jax.custom_jvp
    def mark(value, moving):
        del moving
        return value

    @mark.defjvp
    def _(primals, tangents):
        dtype = _tree.dtype(primals[0])
        total = sum((jnp.sum(t).astype(dtype) for t in tangents[1]), start=jnp.zeros((), dtype))
        return primals[0], jax.tree.map(lambda a: jnp.full_like(a, jnp.nan) * total.astype(a.dtype), primals[0])

    return mark(value, moving)


def own_options(who: str, options: Any) -> dict[str, Any] | None:
    """A dict of our own of a mapping, which from a YAML file is none; TypeError for anything else."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{who}: options must be a mapping from names to values, got {options!r}")
    return None if options is None else dict(options)
