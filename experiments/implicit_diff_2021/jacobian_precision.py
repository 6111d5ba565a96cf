"""The accuracy of a Jacobian at an approximate solution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import datasets, root_jvp
from bilevel.study import Findings, Reporter, Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class JacobianPrecision(Study):
    """Error of the Jacobian against the error of the solution, for ridge regression with one penalty per coordinate.

    min over x of ‖Φx − y‖² + Σθᵢxᵢ², θ = 1, by t steps of gradient descent of length 1/L from zero. Implicit: (∂₁F)⁻¹∂₂F at
    x_t, by the library's `root_jvp`. Unrolled: the derivative of the t steps. Bound: theorem 1, ‖x_t − x*‖/λ_min(H)
    with H = ΦᵀΦ + diag θ, as there γ = 0 and β = 1. Norms are spectral for matrices, Euclidean for vectors.

    Args:
      data: a regression table, which is not scaled.
      steps: numbers of steps t, ascending.

    Reference: Blondel et al. 2022, theorem 1 and the figure beside it.
    """

    data: str = "diabetes"
    steps: list[int] = dataclasses.field(default_factory=lambda: [3, 10, 30, 100])

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or sorted(set(self.steps)) != list(self.steps):
            raise ValueError(f"study.steps must be ascending whole numbers from 1, got {list(self.steps)}")

    @property
    def count(self) -> int:
        return len(self.steps)

    @property
    def title(self) -> str:
        return f"Jacobian precision, ridge regression on {self.data}"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """One row per t: `steps`, `solution_error`, `implicit_error`, `unrolled_error`, `bound`."""
        del seed
        table = datasets.load_table(self.data, "regression")
        features, targets = jnp.asarray(table.features, dtype), jnp.asarray(table.targets, dtype)
        theta = jnp.ones(features.shape[1], dtype)
        hessian = features.T @ features + jnp.diag(theta)
        solution = jnp.linalg.solve(hessian, targets @ features)
        exact = -jnp.linalg.solve(hessian, jnp.diag(solution))
        eigenvalues = jnp.linalg.eigvalsh(hessian)
        step = 1 / (2 * eigenvalues[-1])

        def condition(x: jax.Array, theta: jax.Array) -> jax.Array:
            """Half of the loss's gradient."""
            return (features @ x - targets) @ features + theta * x

        def iterate(x: jax.Array, theta: jax.Array, count: int) -> jax.Array:
            return jax.lax.fori_loop(0, count, lambda _, x: x - 2 * step * condition(x, theta), x)

        jacobian = jax.jit(jax.jacfwd(iterate, argnums=1))
        x = jnp.zeros_like(theta)
        rows = []
        for t in self.steps:
            point = iterate(x, theta, t)
            implied = jax.vmap(lambda v, at=point: root_jvp(condition, at, (theta,), (v,)), out_axes=1)(
                jnp.eye(len(theta), dtype=dtype)
            )
            error = float(jnp.linalg.norm(point - solution))
            rows.append(
                {
                    "steps": t,
                    "solution_error": error,
                    "implicit_error": float(jnp.linalg.norm(implied - exact, 2)),
                    "unrolled_error": float(jnp.linalg.norm(jacobian(x, theta, t) - exact, 2)),
                    "bound": error / float(eigenvalues[0]),
                }
            )
            report(rows[-1])
        within = [row["implicit_error"] <= row["bound"] * (1 + 1e-6) for row in rows]
        return Findings(
            {
                "rows": rows,
                "bound_holds": bool(np.all(within)),
                "unrolled_over_implicit": [row["unrolled_error"] / row["implicit_error"] for row in rows],
            }
        )
