"""Independent solvers and closed forms, which know nothing of bilevel."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np


def equality_qp(q, c, e, d):
    """z and multipliers of: minimize ½zᵀQz + cᵀz subject to Ez = d. Differentiable by JAX."""
    n, rows = c.shape[0], e.shape[0]
    kkt = jnp.block([[(q + q.T) / 2, e.T], [e, jnp.zeros((rows, rows))]])
    found = jnp.linalg.solve(kkt, jnp.concatenate([-c, d]))
    return found[:n], found[n:]


CLARABEL = {"solver": "CLARABEL", "tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
SCS = {
    "solver": "SCS",
    "eps_abs": 1e-13,
    "eps_rel": 1e-13,
    "acceleration_lookback": 10,
    "normalize": False,
    "rho_x": 1e-3,
}


def cvxpy_minimize(objective, constraints=(), settings=None):
    """Solve with CVXPY, by Clarabel unless told otherwise; an inexact answer is judged by what it is used for."""
    import cvxpy as cp

    program = cp.Problem(cp.Minimize(objective), list(constraints))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate", category=UserWarning)
        program.solve(**(settings or CLARABEL))
    assert program.status in ("optimal", "optimal_inaccurate"), program.status


def half_square(q, x):
    """½xᵀQx for CVXPY, through a factor, which Clarabel likes better than a quadratic form."""
    import cvxpy as cp

    return cp.sum_squares(np.linalg.cholesky((q + q.T) / 2).T @ x) / 2


class Root:
    """A root of function(x, *args) of a vector x: SciPy's hybrid method, then Newton steps to rounding."""

    def __init__(self, function):
        self.value, self.jacobian = jax.jit(function), jax.jit(jax.jacfwd(function))

    def __call__(self, start, *args):
        from scipy.optimize import root

        def value(x):
            return np.asarray(self.value(x, *args))

        def jacobian(x):
            return np.asarray(self.jacobian(x, *args))

        x = root(value, np.asarray(start, float), jac=jacobian, tol=1e-12).x
        for _ in range(3):
            move = np.linalg.solve(jacobian(x), value(x))
            x = x - move
        assert np.linalg.norm(move) <= 1e-12 * np.linalg.norm(x), f"the last Newton step is {np.linalg.norm(move):.1e}"
        return x
