"""Problems for external solvers, and what ours say of them."""

import functools

import inner_cases
import jax
import jax.numpy as jnp
import numpy as np
from catalog.solvers import equality_qp
from conftest import precision

import bilevel as bl
from bilevel import inner, tasks
from bilevel.optimality import KKTSolution
from bilevel.statements import QP, LinearModel

X, Y, CLASSES = inner_cases.X, inner_cases.Y, inner_cases.CLASSES
NOISY = np.where(np.arange(40) % 5 == 0, np.arange(40) % 3, CLASSES)  # not separable


def linear_problem(loss="squared", mean=False, **penalties):
    def outer(params, hparams, data):
        return jnp.sum(jnp.sin(params) * jnp.cos(jnp.arange(params.size, dtype=params.dtype)).reshape(params.shape))

    return bl.Problem(
        outer_loss=outer, linear_model=LinearModel(loss=loss, rows=lambda data: data, mean=mean, **penalties)
    )


def target_problem():
    """minimize ‖x − θ‖²/2, whose solution is θ."""
    return bl.Problem(lambda x, h, d: jnp.sum((x - h) ** 2) / 2, lambda x, h, d: jnp.sum(jnp.sin(x)))


def solve(solver, problem, start, hparams, data=None):
    solver.check(problem)
    return jax.jit(lambda *args: solver.solve(problem, *args))(start, hparams, data)


def program_case():
    """With its active rows as equalities the program is a linear system."""
    rng = np.random.default_rng(9)
    rows, columns, pull = rng.normal(size=(2, 8)), rng.normal(size=(12, 8)), rng.normal(size=(8, 4))

    def program(hparams, data):
        matrix = jnp.asarray(inner_cases.Q) + jnp.diag(jnp.exp(hparams[:1])[0] * jnp.ones(8))
        bound = 0.1 + jnp.exp(hparams[1]) * jnp.ones(12) / 4
        return QP(matrix, inner_cases.C + pull @ hparams, jnp.asarray(rows), 0.1 * hparams[2:], columns, bound)

    problem, theta = bl.Problem(inner=bl.Program(program)), jnp.array([-1.0, -1.5, 0.5, 1.0])
    start = KKTSolution(jnp.zeros(8), jnp.zeros(2), jnp.zeros(12))
    at = solve(inner.CVXPY(), problem, start, theta).params
    active = np.nonzero(np.asarray(at.dual_ineq) > 1e-6)[0]
    assert len(active) >= 2

    def closed_form(hparams):
        q, c, e, d, m, h = program(hparams, None)
        z, duals = equality_qp(q, c, jnp.vstack([e, m[active]]), jnp.concatenate([d, h[active]]))
        return KKTSolution(z, duals[:2], jnp.zeros(12).at[active].set(duals[2:]))

    return inner.CVXPY(), problem, start, theta, None, closed_form


@functools.cache
def setup(task):
    made = {
        "ridge": tasks.Ridge(),
        "lasso": tasks.Lasso(),
        "logistic": tasks.Logistic(data="iris", penalty=0.05),
        "svm": tasks.SVM(data="iris", theta=20.0),
    }[task]
    with precision("float64"):
        return made.setup(0, "float64")


def estimate(problem, solver, start, hparams, data):
    def run(start, hparams, data):
        return bl.hypergrad.Implicit().run(problem, solver, start, hparams, data)

    return jax.jit(run)(start, hparams, data)


@functools.cache
def native(task):
    made = setup(task)
    smooth = made.problem.parts.smooth
    solver = inner.LBFGS(rtol=1e-13, max_steps=9000) if smooth else inner.FISTA(rtol=1e-13, max_steps=90_000)
    with precision("float64"):
        return estimate(made.problem, solver, made.params, made.hparams, made.data)
