"""The contract of a hypergradient estimator, and the record that it returns."""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.hypergrad._verdict import MODES, Verdict
from bilevel.inner import InnerSolver, check_statements
from bilevel.linear import LinearSolver
from bilevel.problem import At, Problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solve:
    """How one of the solves of a step ended.

    Attributes:
      status: int32 code of `bilevel.Status`.
      residual: the last residual, relative to the solution or the right-hand side; NaN where it is not known.
      intended: the solve stopped where its settings told it to (a fixed number of steps, a truncated series), so that a step
        limit that was reached is no failure.

    Example:
      >>> import bilevel as bl
      >>> bl.hypergrad.Solve(bl.Status.MAX_STEPS, 0.1).failed, bl.hypergrad.Solve(bl.Status.MAX_STEPS, 0.1, intended=True).failed
      (True, False)
    """

    status: jax.Array
    residual: jax.Array
    intended: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def failed(self) -> jax.Array:
        """Whether it ended elsewhere than it should; of the type of `status`, on the host or under `jit`."""
        return (self.status != Status.CONVERGED) & ((self.status != Status.MAX_STEPS) | (not self.intended))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypergradient:
    """A hypergradient with its provenance.

    Attributes:
      grad: d outer_loss(x*(θ), θ)/dθ, with the structure of hparams; None in place of leaves without a derivative.
      outer_loss: the outer loss at the computed inner solution.
      outer_error: an estimate, ⟨u, F(x)⟩, of outer_loss minus the outer loss at the exact inner solution (the dual-weighted
        residual, exact to first order); NaN where the estimator has none.
      params: the inner solution.
      carry: input of the next estimate, a pytree of arrays; the adjoint, for `Implicit`.
      solves: how the solves ended, by name (`"inner"`, `"adjoint"`), first the one on which the others depend; an `OrderedDict`
        keeps this order under `jit`.
      counts: oracle calls by name: `grad_evals`, gradients of the inner loss, and `hvps`, products with its Hessian (a mixed
        product counts as one).
      approximate: whether the estimate is biased by design (Gauss–Newton, a truncation), even if every solve converged.
      verdict: how far grad can be used; None where the estimator makes none.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: (x - h) ** 2, lambda x, h, d: x**2)
      >>> found = bl.hypergrad.Implicit().run(problem, bl.inner.Newton(), jnp.array(0.0), jnp.array(3.0))
      >>> print(found.grad.round(), found.outer_loss.round(), found.params.round(), list(found.solves))
      6.0 9.0 3.0 ['inner', 'adjoint']
    """

    grad: PyTree
    outer_loss: jax.Array
    outer_error: jax.Array
    params: PyTree
    carry: PyTree
    solves: dict[str, Solve]
    counts: dict[str, jax.Array]
    approximate: bool | jax.Array = False
    verdict: Verdict | None = None

    @property
    def status(self) -> jax.Array:
        """The status of the first solve that failed; of the last one if none did."""
        *_, last = self.solves.values()
        found = last.status
        for solve in reversed(self.solves.values()):
            found = jnp.where(solve.failed, solve.status, found)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator(abc.ABC):
    """Base class of all estimators, which solve the inner problem and differentiate it. A subclass defines `estimate`.

    Args:
      verdict: what an estimate spends on its `Verdict`: `"cheap"` (default) makes a rough estimate of the error, and is
        "doubtful" where that is not small (`run_loop` then makes a full one); `"full"` makes a precise one, by four linear
        solves; `"off"` makes none.

    Raises:
      ValueError: another verdict.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: jnp.sum((x - h) ** 2), lambda x, h, d: jnp.sum(x**2))
      >>> found = bl.hypergrad.Implicit().run(problem, bl.inner.LBFGS(), jnp.zeros(2), jnp.array([1.0, 2.0]))
      >>> print(found.grad.round(), bl.Status(int(found.status)).word)
      [2. 4.] converged
    """

    verdict: Literal["cheap", "full", "off"] = "cheap"

    def __post_init__(self) -> None:
        if self.verdict not in MODES:
            raise ValueError(
                f"hypergrad.{type(self).__name__}: verdict must be one of {', '.join(MODES)}, got {self.verdict!r}"
            )

    def check(self, problem: Problem, inner: InnerSolver) -> None:
        """Raise ValueError, before anything is traced, if the parts do not fit together."""
        del problem, inner

    def check_arrays(self, at: At, params: PyTree) -> None:
        """Raise ValueError unless the losses are scalars at these concrete arrays and all statements of the problem agree."""
        primal = params.primal if at.parts.kind == "kkt" else params
        outer = None if at.problem.outer_loss is None else at.outer_loss
        inner = None if at.parts.inner_loss is None else at.inner_loss
        for name, function, inputs in (("inner_loss", inner, primal), ("outer_loss", outer, params)):
            value: Any = None if function is None else jax.eval_shape(function, inputs)
            if function is not None and getattr(value, "shape", None) != ():
                raise ValueError(f"Problem.{name} must return a scalar, got {_tree.shapes(value)}: sum or average it")
        check_statements(at.problem, params, at.hparams, at.data)

    def prepare(self, at: At, inner: InnerSolver) -> PyTree:
        """The arrays that the inner solver computes once for all estimates; they become `at.prepared`."""
        return inner.prepare(at)

    def init(self, at: At, params: PyTree) -> PyTree:
        """The first carry, a pytree of arrays; None for an estimator that carries nothing."""
        del at, params

    def run(
        self,
        problem: Problem,
        inner: InnerSolver,
        params: PyTree,
        hparams: PyTree,
        data: PyTree = None,
        *,
        carry: PyTree = None,
        key: jax.Array | None = None,
    ) -> Hypergradient:
        """Prepare the inner solver, start the carry unless it is given, and make one estimate. Can be wrapped in `jax.jit`.

        Arguments as for `estimate`; a key of None is `jax.random.key(0)`.
        """
        at = At(problem, hparams, data, key=key)
        at = at.replace(prepared=self.prepare(at, inner))
        carry = self.init(at, params) if carry is None else carry
        return self.estimate(at, inner, params, carry, jax.random.key(0) if key is None else key)

    def adjoint_solver(self) -> LinearSolver | None:
        """The solver of the adjoint system; None for an estimator that solves none."""
        return None

    def with_adjoint_solver(self, solver: LinearSolver) -> "Estimator":
        """The same estimator with another solver of its adjoint system, where it has one."""
        del solver
        return self

    @abc.abstractmethod
    def estimate(self, at: At, inner: InnerSolver, params: PyTree, carry: PyTree, key: jax.Array) -> Hypergradient:
        """Solve the inner problem from params, and estimate the hypergradient.

        Args:
          at: the problem at its hyperparameters and data, with what `inner` prepared.
          inner: the inner solver.
          params: start of the inner variable.
          carry: the carry of the last estimate, or `init`.
          key: a JAX random key for this estimate alone, for estimators that draw.
        """
