"""The base class of external solvers: one call of foreign code on NumPy arrays, checks of its answer, the verdict."""

import abc
import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState
from bilevel.inner._judge import judge
from bilevel.inner.external import _callback
from bilevel.problem import At

_log = logging.getLogger("bilevel")
_said: set[tuple[str, str]] = set()


class Answer(NamedTuple):
    """The answer of foreign code, with its iterations and evaluations of the gradient."""

    params: PyTree
    steps: int = 1
    grad_evals: int = 0


Foreign = Callable[[PyTree, PyTree], Answer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _External(InnerSolver):
    """A solver of another package as a black box, under `jit` and `vmap` too.

    One step is the whole solve, in double precision on the host. Its answer is judged by rtol and atol like that of every
    `InnerSolver`: the status is `CONVERGED` or `NOT_A_SOLUTION`. An exception gives `EXTERNAL_ERROR`, an answer of another
    structure or shape `WRONG_OUTPUT`, both with a warning in the log "bilevel". It is not differentiated: a derivative of
    `solve` is NaN. Use `hypergrad.Implicit`, or `custom_root` around it.

    Args:
      rtol, atol: bounds on the judged error, as for `InnerSolver`; the foreign solver has its own tolerances.
      max_steps: limit on the foreign solver's own iterations.
    """

    differentiable = False

    max_steps: int = 10_000

    @abc.abstractmethod
    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        """The foreign code as a function of (start, inputs) on NumPy arrays, and its inputs, computed by JAX."""

    def step(self, at: At, state: PlainState) -> PlainState:
        """The whole solve, and its verdict."""
        start, frozen = jax.lax.stop_gradient((state.params, at))
        foreign, inputs = self._foreign(frozen, start)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), start)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        found, code, steps, evals = _callback.call(
            lambda start, inputs: self._guarded(foreign, start, inputs), (shapes, count, count, count), start, inputs
        )
        work = {"grad_evals": evals + 1, "hvps": 1, "steps": steps}
        progress = self.advance(
            state.progress, found, *judge(frozen, found), **work, failed=True, failure=Status.NOT_A_SOLUTION
        )
        progress = progress.ending(jnp.where(code == Status.CONVERGED, progress.status, code))
        return PlainState(_tree.without_derivative(found, (at.hparams, at.data)), progress)

    def _guarded(self, foreign: Foreign, start: PyTree, inputs: PyTree) -> tuple[PyTree, ...]:
        """The answer in the dtypes of the start, a status, and the counts; never raises."""
        own = jax.tree.map(np.copy, _callback.in_double(start))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # the verdict replaces a solver's warnings
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
        """Log a message, once for each solver and each text, whatever the numbers in it."""
        key = type(self).__name__, re.sub(r"\d+", "#", text)
        if key not in _said:
            _said.add(key)
            _log.warning("inner.%s: %s. Further messages of this kind are not logged.", type(self).__name__, text)


def _returned(params: PyTree, status: Status, steps: int = 1, grad_evals: int = 0) -> tuple[PyTree, ...]:
    return (params, *(np.int32(n) for n in (status, max(steps, 1), grad_evals)))


def _fits(found: PyTree, start: PyTree) -> bool:
    """Whether both have the same structure and shapes, and the answer is floating-point."""
    if jax.tree.structure(found) != jax.tree.structure(start):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True)
    try:
        return all(np.asarray(a).dtype.kind == "f" and np.shape(a) == b.shape for a, b in pairs)
    except (TypeError, ValueError):
        return False


def _describe(found: Any) -> str:
    def leaf(a: Any) -> str:
        shape = getattr(a, "shape", None)
        return type(a).__name__ if shape is None else f"{getattr(a, 'dtype', type(a).__name__)}{list(shape)}"

    return "None" if found is None else str(jax.tree.map(leaf, found)).replace("'", "")


def own_options(who: str, options: Any) -> dict[str, Any] | None:
    """The options as a dict (a mapping of a YAML file is none); raises TypeError if they are no mapping."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{who}: options must be a mapping from names to values, got {options!r}")
    return None if options is None else dict(options)
