"""How a solve ended: one small integer per solve (and per `vmap` lane), with words for people."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """Outcome of an iterative solve. `CONVERGED` is the only success; every other code says what went wrong.

    Inside JAX a status is an int32 array, so that a batched solve has one per lane; `Status(int(code))` brings it back.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    NEGATIVE_CURVATURE = 3
    NON_FINITE = 4
    BREAKDOWN = 5
    EXTERNAL_ERROR = 6
    WRONG_OUTPUT = 7
    NOT_A_SOLUTION = 8
    WRONG_STRUCTURE = 9

    @property
    def word(self) -> str:
        """The status as one lower-case word, as it stands in `metrics.jsonl`."""
        return self.name.lower()

    @property
    def message(self) -> str:
        """A sentence on what happened and what to try."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the residual is within its tolerance",
    Status.MAX_STEPS: "the step limit was reached first: raise max_steps, loosen rtol, or improve the conditioning",
    Status.STAGNATED: "the residual stopped falling above its tolerance: (a) the precision is too low for rtol, "
    "(b) the system is singular or ill-conditioned, or (c) the problem is not what the solver is for",
    Status.NEGATIVE_CURVATURE: "the operator is not positive definite: (a) the inner point is not a minimum, or "
    "(b) the matrix is not symmetric; use a solver for general systems",
    Status.NON_FINITE: "a NaN or an infinity appeared: (a) in the data or the start values, or (b) the iteration diverged",
    Status.BREAKDOWN: "the method broke down, by a division by zero or an exactly singular matrix: try another "
    "linear solver, or check that the problem determines its solution",
    Status.EXTERNAL_ERROR: "the external solver raised an error, which the log shows: (a) an input that it does not take, or "
    "(b) a setting that it does not know; the start was returned",
    Status.WRONG_OUTPUT: "the external solver returned something else than floating-point arrays of the structure and shapes "
    "of params, as the log shows; the start was returned",
    Status.NOT_A_SOLUTION: "what the external solver returned does not satisfy the optimality condition to rtol: (a) tighten "
    "its own tolerance, (b) loosen rtol, or (c) it solves another problem (the scale of a penalty, an intercept)",
    Status.WRONG_STRUCTURE: "the reduced linear system is solved, and its answer does not solve the full one: (a) a declared "
    "structure does not hold (separable, polyhedral, a datafit that is not the inner loss's), or (b) the precision is too low",
}


def describe(code: int) -> str:
    """Return `"word: message"` for a status code, for error messages and logs."""
    status = Status(int(code))
    return f"{status.word}: {status.message}"


INTENDED = "intended"
FINE = Status.CONVERGED.word, INTENDED
"""Words of a row in `metrics.jsonl` for a step without a failed solve: all converged, or stopped where their settings said."""
