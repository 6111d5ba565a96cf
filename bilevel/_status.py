"""The outcome of a solve: one small integer per solve (and per `vmap` lane), with a word and a sentence for each."""

import enum


class Status(enum.IntEnum):
    """Outcome of a solve. `CONVERGED` is the only success; every other code names what went wrong.

    In JAX a status is an int32 array, one per lane of a batched solve; `Status(int(code))` converts one back.

    Example:
      >>> import bilevel as bl
      >>> bl.Status(2).word
      'stagnated'
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
        """The status as one lower-case word, as in `metrics.jsonl`."""
        return self.name.lower()

    @property
    def message(self) -> str:
        """What happened and what to try, in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the residual is within its tolerance",
    Status.MAX_STEPS: "the step limit was reached first: raise max_steps, loosen rtol, or improve the conditioning",
    Status.STAGNATED: "the residual stopped falling above its tolerance: (a) the precision is too low for rtol, "
    "(b) the system is singular or ill-conditioned, or (c) the solver does not suit this problem",
    Status.NEGATIVE_CURVATURE: "the operator is not positive definite: (a) the inner point is not a minimum, or "
    "(b) the matrix is not symmetric; use a solver for general systems",
    Status.NON_FINITE: "a NaN or an infinity appeared: (a) in the data or the start values, or (b) the iteration diverged",
    Status.BREAKDOWN: "the method broke down, by a division by zero or an exactly singular matrix: try another "
    "linear solver, or check that the problem determines its solution",
    Status.EXTERNAL_ERROR: "the external solver raised an error, shown in the log: (a) an input that it does not accept, or "
    "(b) a setting that it does not know; the start was returned",
    Status.WRONG_OUTPUT: "the external solver did not return floating-point arrays with the structure and shapes of params, as "
    "shown in the log; the start was returned",
    Status.NOT_A_SOLUTION: "the answer of the external solver does not satisfy the optimality condition to rtol: (a) tighten "
    "the solver's own tolerance, (b) loosen rtol, or (c) it solves another problem (the scale of a penalty, an intercept)",
    Status.WRONG_STRUCTURE: "the solution of the reduced linear system does not solve the full one: (a) a declared structure "
    "does not hold (separable, polyhedral, symmetric, a datafit other than the inner loss), or (b) the precision is too low",
}


def describe(code: int) -> str:
    """`"word: message"` for a status code, for error messages and logs."""
    status = Status(int(code))
    return f"{status.word}: {status.message}"


INTENDED = "intended"
FINE = Status.CONVERGED.word, INTENDED
"""Words of a row in `metrics.jsonl` for a step without a failed solve: all converged, or stopped where their settings said."""
