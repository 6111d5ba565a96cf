"""Quadratic and cone programs: records of their numbers, and the statement that computes them from hyperparameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.operators.cones import Cones
from bilevel.statements._base import Parts, Statement


class QP(NamedTuple):
    """minimize ½⟨z, Qz⟩ + ⟨c, z⟩ subject to Ez = d, Mz ≤ h.

    Attributes:
      Q: symmetric, shape (n, n); a `Factored` matrix; or a `jax.tree_util.Partial` that maps z ↦ Qz. E and M may be
        functions too. A matrix acts along the first axis of z.
      c: of the shape of z: (n,), or (n, k) for k columns that share Q.
      E, d: equalities, shapes (q, n) and (q,); None for none.
      M, h: inequalities, shapes (r, n) and (r,); None for none.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> program = bl.QP(Q=2 * jnp.eye(2), c=-jnp.ones(2), E=jnp.ones((1, 2)), d=jnp.ones(1))
      >>> print(program.loss(jnp.ones(2)), program.equality(jnp.ones(2)), program.inequality(jnp.ones(2)))
      0.0 [1.] None
    """

    Q: Any
    c: Any
    E: Any = None
    d: Any = None
    M: Any = None
    h: Any = None

    def loss(self, z: Any) -> jax.Array:
        """½⟨z, Qz⟩ + ⟨c, z⟩."""
        return jnp.vdot(z, apply(self.Q, z)) / 2 + jnp.vdot(self.c, z)

    def equality(self, z: Any) -> Any:
        """Ez − d; None without equalities."""
        return None if self.E is None else apply(self.E, z) - self.d

    def inequality(self, z: Any) -> Any:
        """Mz − h; None without inequalities."""
        return None if self.M is None else apply(self.M, z) - self.h


class ConeProgram(NamedTuple):
    """minimize cᵀz subject to Ez + s = d, s in K.

    Attributes:
      c: shape (n,).
      E: shape (m, n).
      d: shape (m,).
      cones: K, a `bilevel.operators.cones.Cones`, whose sizes add up to m.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> cones = bl.operators.cones.Cones(nonnegative=2)
      >>> bl.ConeProgram(c=jnp.ones(2), E=-jnp.eye(2), d=jnp.zeros(2), cones=cones).cones.size      # minimize z₁ + z₂ over z ≥ 0
      2
    """

    c: Any
    E: Any
    d: Any
    cones: Cones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """The matrix scale · A Aᵀ, known by its factor.

    Attributes:
      factor: A, shape (n, r).
      scale: a scalar.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.Factored(jnp.array([[1.0], [2.0]]), 0.5)(jnp.ones(2)))
      [1.5 3. ]
    """

    factor: Any
    scale: Any

    def __call__(self, z: Any) -> jax.Array:
        """The product with z, along its first axis. Written with z in front, which XLA runs faster on the CPU."""
        return self.scale * (self.factor @ (z.T @ self.factor).T)


@dataclasses.dataclass(frozen=True)
class Program(Statement):
    """A quadratic or a cone program whose numbers depend on the hyperparameters.

    As `Problem(inner=…)`, params is a `bilevel.optimality.KKTSolution` for a quadratic program and a
    `bilevel.optimality.ConicPoint` for a cone program. As `Problem(also=…)`, a quadratic program states the problem once more,
    for solvers that take programs, and params is that of the first statement.

    Args:
      function: (hparams, data) -> `QP`, or with `kind="cone"` -> `ConeProgram`.
      kind: which of them; a solve raises TypeError if the function returns something else.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> nearest = bl.Program(lambda hparams, data: bl.QP(Q=jnp.eye(2), c=-hparams, M=-jnp.eye(2), h=jnp.zeros(2)))
      >>> start = bl.optimality.KKTSolution(jnp.zeros(2), None, jnp.zeros(2))
      >>> found = bl.inner.OSQP().solve(bl.Problem(inner=nearest), start, jnp.array([3.0, -1.0]))
      >>> bool(jnp.allclose(found.params.primal, jnp.array([3.0, 0.0]), atol=1e-4))
      True
    """

    function: Callable[[Any, Any], QP | ConeProgram]
    kind: Literal["quadratic", "cone"] = "quadratic"

    def __post_init__(self) -> None:
        if self.kind not in ("quadratic", "cone"):
            raise ValueError(f"Program: kind must be 'quadratic' or 'cone', got {self.kind!r}")
        if not callable(self.function):
            raise TypeError(f"Program: function must be a function (hparams, data) -> QP, got {self.function!r}")

    def parts(self) -> Parts:
        """The program; for a quadratic one also its loss and its constraints as functions."""
        if self.kind == "cone":
            return Parts(cone_program=self._evaluated)
        return Parts(
            inner_loss=lambda z, hparams, data: self._evaluated(hparams, data).loss(z),
            equality=lambda z, hparams, data: self._evaluated(hparams, data).equality(z),
            inequality=lambda z, hparams, data: self._evaluated(hparams, data).inequality(z),
            quadratic_program=self._evaluated,
        )

    def _evaluated(self, hparams: Any, data: Any) -> Any:
        program, expected = self.function(hparams, data), QP if self.kind == "quadratic" else ConeProgram
        if not isinstance(program, expected):
            raise TypeError(
                f"Program(kind={self.kind!r}): function must return a bilevel.{expected.__name__}, got "
                f"{type(program).__name__}"
            )
        return program


def apply(matrix: Any, z: Any) -> Any:
    """The product of a matrix, or of a function that stands for one, with z.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.statements.apply(lambda z: 2 * z, jnp.ones(2)), bl.statements.apply(2 * jnp.eye(2), jnp.ones(2)))
      [2. 2.] [2. 2.]
    """
    return matrix(z) if callable(matrix) else matrix @ z
