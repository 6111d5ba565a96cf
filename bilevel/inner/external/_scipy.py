"""SciPy's minimizers and root finders, with values and derivatives by JAX, in double precision."""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from bilevel import optimality
from bilevel._needs import LOSS, SMOOTH, Need
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External, own_options
from bilevel.problem import At, Problem

A_ROOT = Need(
    "a smooth unconstrained inner problem, a fixed-point map or an optimality condition",
    lambda parts: (
        None if parts.optimality is not None or parts.smooth else "is not smooth, and names no Problem.optimality"
    ),
)

_TIGHT = {
    "L-BFGS-B": {"ftol": 0.0, "gtol": 0.0, "maxcor": 20, "maxfun": 2**31 - 1},
    "BFGS": {"gtol": 0.0},
    "CG": {"gtol": 0.0},
    "hybr": {"xtol": 1e-13},
    "lm": {"xtol": 1e-13, "ftol": 1e-13},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SciPy(_External):
    """A method of `scipy.optimize` that calls compiled JAX functions from inside the callback."""

    method: str
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in _TIGHT:
            raise ValueError(f"{self.name}: no such method: {self.method!r}")
        object.__setattr__(self, "options", own_options(self.name, self.options))

    @abc.abstractmethod
    def _functions(self, problem: Problem) -> tuple[Callable[..., Any], ...]:
        """The functions of (params, at) that the method calls; their values that are like params are raveled."""

    @abc.abstractmethod
    def _run(self, functions: list[Callable[[np.ndarray], Any]], start: np.ndarray, options: dict[str, Any]) -> Any:
        """SciPy's result."""

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), start)

        def compiled(function: Callable[[PyTree, At], Any]) -> Callable[..., Any]:
            return jax.jit(lambda x, inputs: function(_unraveled(x, shapes), At(at.problem, *inputs)))

        functions = [compiled(function) for function in self._functions(at.problem)]
        options = {**_TIGHT[self.method], **(self.options or {})}

        def foreign(start: PyTree, inputs: PyTree) -> Answer:
            with _callback.jax_on_host(), _blas().limit(limits=1, user_api="blas"), warnings.catch_warnings():
                warnings.filterwarnings("error", message="Unknown solver options")
                inputs = jax.device_put(_callback.aligned(inputs))

                def bind(function: Callable[..., Any]) -> Callable[[np.ndarray], Any]:
                    return lambda x: jax.tree.map(np.asarray, function(_callback.aligned(np.asarray(x, float)), inputs))

                found = self._run([bind(function) for function in functions], _raveled(start, np), options)
            return Answer(_unraveled(found.x, shapes), getattr(found, "nit", found.nfev), found.nfev)

        return foreign, (at.hparams, at.data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SciPyMinimize(_SciPy):
    """`scipy.optimize.minimize` on the inner loss, with gradients by JAX, until the loss stops decreasing.

    params is any pytree of floating-point arrays. rtol, atol and statuses are as for `Python`.

    Args:
      max_steps: limit on SciPy's iterations.
      method: one that takes a gradient.
      options: of the method, in place of the defaults here: no tolerances, so that it stops at rounding.

    Raises:
      ValueError, TypeError: an unknown method; options that are not a mapping.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> print(bl.inner.SciPyMinimize().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH)

    method: Literal["L-BFGS-B", "BFGS", "CG"] = "L-BFGS-B"

    def _functions(self, problem: Problem) -> tuple[Callable[..., Any], ...]:
        del problem

        def loss(params: PyTree, at: At) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(at.inner_loss)(params)
            return value, _raveled(gradient, jnp)

        return (loss,)

    def _run(self, functions: list[Callable[[np.ndarray], Any]], start: np.ndarray, options: dict[str, Any]) -> Any:
        from scipy.optimize import minimize

        options = {"maxiter": self.max_steps, **options}
        return minimize(functions[0], start, jac=True, method=self.method, options=options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SciPyRoot(_SciPy):
    """`scipy.optimize.root` on the condition that the problem names or implies, with the Jacobian by JAX, for few unknowns.

    F is the inner gradient of a smooth problem, x − T(x) of a fixed-point map, or `Problem.optimality`. params is any pytree
    of floating-point arrays. rtol, atol and statuses are as for `Python`.

    Args:
      max_steps: limit on evaluations of F ("hybr") or on iterations ("lm").
      method: Powell's hybrid method, or Levenberg and Marquardt's.
      options: of the method, in place of the tight defaults here.

    Raises:
      ValueError, TypeError: an unknown method; options that are not a mapping.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(fixed_point=lambda x, hparams, data: jnp.cos(x))
      >>> print(bl.inner.SciPyRoot().solve(problem, jnp.zeros(1), None).params.round(3))
      [0.739]
    """

    needs = (A_ROOT,)

    method: Literal["hybr", "lm"] = "hybr"

    def _functions(self, problem: Problem) -> tuple[Callable[..., Any], ...]:
        condition = optimality.of(problem)

        def value(params: PyTree, at: At) -> jax.Array:
            return _raveled(condition.residual(at, params), jnp)

        def jacobian(params: PyTree, at: At) -> jax.Array:
            flat = _raveled(params, jnp)
            return jax.jacfwd(lambda x: value(_unraveled(x, params), at))(flat)

        return value, jacobian

    def _run(self, functions: list[Callable[[np.ndarray], Any]], start: np.ndarray, options: dict[str, Any]) -> Any:
        from scipy.optimize import root

        value, jacobian = functions
        limit = {"maxfev" if self.method == "hybr" else "maxiter": self.max_steps}
        return root(value, start, jac=jacobian, method=self.method, options={**limit, **options})


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """One thread for these methods, which work on a few vectors: on a busy machine, threads that wait are 100 times slower."""
    return threadpoolctl.ThreadpoolController()


def _raveled(tree: PyTree, numpy: Any) -> Any:
    """All leaves in one vector, of NumPy or of JAX."""
    return numpy.concatenate([numpy.ravel(a) for a in jax.tree.leaves(tree)])


def _unraveled(x: Any, like: PyTree) -> PyTree:
    """Undo `_raveled`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([a.size for a in leaves])
    parts = [x[end - a.size : end].reshape(a.shape) for a, end in zip(leaves, ends, strict=True)]
    return jax.tree.unflatten(structure, parts)
