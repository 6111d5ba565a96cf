"""Quadratics over simple sets: ProjectedGradient, BlockProximalGradient on rows, MirrorStep, ConvexHull."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.operators.projection import projection_l2_ball, projection_non_negative, projection_simplex
from bilevel.optimality import BlockProximalGradient, ConvexHull, MirrorStep, ProjectedGradient
from catalog.core import DIFFERENCES, JIT, Case, Check, Entry, closed_form, differences
from catalog.solvers import cvxpy_minimize, equality_qp, half_square

N = 24
RNG = np.random.default_rng(21)
FACTOR = RNG.normal(size=(36, N))
CURVATURE = FACTOR.T @ FACTOR / 12 + np.diag(np.linspace(0.2, 1.0, N))
CVXPY = "differences of CVXPY with Clarabel"


def quadratic(x, hparams, data):
    """½xᵀQx − ⟨b, x⟩."""
    return jnp.vdot(x, hparams["q"] @ x) / 2 - jnp.vdot(hparams["b"], x)


def minimum_between(low, high):
    """Q, a point with a third of its coordinates at each bound, and b with multipliers of size one or more there."""
    rng = np.random.default_rng(22)
    third = np.arange(N) % 3
    x = np.where(third == 0, low, np.where(third == 1, high, low + (high - low) * rng.uniform(0.2, 0.8, N)))
    multiplier = rng.uniform(1.0, 2.0, N) * np.choose(third, [1, -1, 0])
    return {"q": jnp.asarray(CURVATURE), "b": jnp.asarray(CURVATURE @ x - multiplier)}


# A box whose bounds move.


def box_hparams():
    low, high = -np.linspace(0.5, 1.0, N), np.linspace(0.6, 1.2, N)
    return minimum_between(low, high) | {"low": jnp.asarray(low), "high": jnp.asarray(high)}


def box_solution(hparams):
    """On the face of the construction: every third coordinate at its lower bound, every next at its upper one."""
    fixed = np.flatnonzero(np.arange(N) % 3 < 2)
    at = jnp.where(np.arange(N) % 3 == 0, hparams["low"], hparams["high"])[fixed]
    return equality_qp(hparams["q"], -hparams["b"], jnp.eye(N)[fixed], at)[0]


def clip(x, hparams, data):
    return jnp.clip(x, hparams["low"], hparams["high"])


def box(condition, polyhedral=True):
    parts = {} if isinstance(condition, MirrorStep) else {"projection": clip, "polyhedral": polyhedral}
    problem = bl.Problem(inner_loss=quadratic, **parts, optimality=condition)
    return Case(problem, box_hparams(), jax.jit(box_solution)(box_hparams()))


def by_cvxpy_box(case):
    import cvxpy as cp

    x = cp.Variable(N)

    def solve(hparams):
        p = jax.tree.map(np.asarray, hparams)
        cvxpy_minimize(half_square(p["q"], x) - p["b"] @ x, [x >= p["low"], x <= p["high"]])
        return x.value

    return differences(case, solve, 0.02)


def fermi_dirac():
    """∇φ of the Fermi–Dirac entropy of the box [−2, 2], and its Bregman projection on the smaller one."""
    return MirrorStep(
        mirror=lambda x: jnp.log((2 + x) / (2 - x)),
        projection=lambda dual, h, data: clip(2 * jnp.tanh(dual / 2), h, data),
    )


def euclidean():
    return MirrorStep(mirror=lambda x: x, projection=clip)


# Non-negative least squares.


def nnls_loss(x, targets, data):
    return jnp.sum((FACTOR @ x - targets) ** 2) / 2


@functools.cache
def nnls_targets():
    x = np.where(np.arange(N) % 2, 0, np.linspace(0.5, 1.5, N))
    multiplier = np.where(x > 0, 0, np.linspace(3.0, 6.0, N))
    return jnp.asarray(FACTOR @ x - FACTOR @ np.linalg.solve(FACTOR.T @ FACTOR, multiplier))


def nnls_solution(targets):
    inside = FACTOR[:, ::2]
    return jnp.zeros(N).at[::2].set(jnp.linalg.solve(inside.T @ inside, inside.T @ targets))


def nnls(condition, polyhedral=True):
    problem = bl.Problem(
        inner_loss=nnls_loss,
        projection=lambda x, targets, data: projection_non_negative(x),
        polyhedral=polyhedral,
        optimality=condition,
    )
    return Case(problem, nnls_targets(), jax.jit(nnls_solution)(nnls_targets()))


def by_scipy_nnls(case):
    from scipy.optimize import nnls

    return differences(case, lambda y: nnls(FACTOR, np.asarray(y))[0], 0.01, pattern=lambda x: x > 0, accuracy=1e-10)


# The multiclass SVM's dual: rows of simplices.

EXAMPLES, CLASSES, WIDTH = 10, 4, 14
CENTERS = RNG.normal(size=(CLASSES, WIDTH))
LABELS = np.arange(EXAMPLES) % CLASSES
INPUTS = CENTERS[LABELS] * 0.6 + RNG.normal(size=(EXAMPLES, WIDTH))
ONE_HOT = np.eye(CLASSES)[LABELS]


def svm_loss(x, hparams, data):
    """(θ/2)‖W‖² + ⟨x, Y⟩ with W = Xᵀ(Y − x)/θ, divided by the number of classes."""
    w = hparams["inputs"].T @ (ONE_HOT - x) / hparams["theta"]
    return (hparams["theta"] * jnp.sum(w**2) / 2 + jnp.vdot(x, ONE_HOT)) / CLASSES


def svm_hparams():
    return {"theta": jnp.asarray(6.0), "inputs": jnp.asarray(INPUTS)}


def cvxpy_svm(hparams):
    import cvxpy as cp

    x, theta = cp.Variable((EXAMPLES, CLASSES)), float(hparams["theta"])
    objective = cp.sum_squares(np.asarray(hparams["inputs"]).T @ (ONE_HOT - x)) / (2 * theta) + cp.sum(
        cp.multiply(x, ONE_HOT)
    )
    cvxpy_minimize(objective, [x >= 0, cp.sum(x, axis=1) == 1])
    return x.value


def inside(x):
    return np.asarray(x) > 1e-6


@functools.cache
def svm_support():
    return inside(cvxpy_svm(svm_hparams()))


def svm_solution(hparams):
    """The quadratic program on the support, with rows that sum to one."""
    row, column = np.nonzero(svm_support())
    gram = hparams["inputs"] @ hparams["inputs"].T
    q = gram[row][:, row] * (column[:, None] == column) / hparams["theta"]
    c = ONE_HOT[row, column] - (gram @ ONE_HOT)[row, column] / hparams["theta"]
    found, _ = equality_qp(q, c, jnp.asarray(np.eye(EXAMPLES)[:, row]), jnp.ones(EXAMPLES))
    return jnp.zeros((EXAMPLES, CLASSES)).at[row, column].set(found)


def rows_on_simplex(x, hparams, data):
    return jax.vmap(projection_simplex)(x)


def svm_lipschitz(hparams, data):
    return jnp.sum(hparams["inputs"] ** 2, axis=1) / hparams["theta"]


def svm(condition, polyhedral=True, floor=0.0):
    """With `floor` in place of the zeros."""
    statement = bl.Minimization(
        loss=svm_loss, projection=rows_on_simplex, polyhedral=polyhedral, block_lipschitz=svm_lipschitz
    )
    problem = bl.Problem(inner=statement, optimality=condition)
    svm_support()  # outside of jit
    solution = jax.jit(svm_solution)(svm_hparams())
    return Case(problem, svm_hparams(), jnp.where(solution > 0, solution, floor))


def by_cvxpy_svm(case):
    return differences(case, cvxpy_svm, 0.01, pattern=inside)


# A Euclidean ball, curved.


def ball_hparams():
    b = np.random.default_rng(23).normal(size=N) * 2
    return {"q": jnp.asarray(CURVATURE), "b": jnp.asarray(b), "radius": jnp.asarray(0.8)}


def ball_at(multiplier, hparams):
    return jnp.linalg.solve((hparams["q"] + hparams["q"].T) / 2 + multiplier * jnp.eye(N), hparams["b"])


def ball_multiplier(hparams):
    from scipy.optimize import brentq

    p = jax.tree.map(np.asarray, hparams)
    values, vectors = np.linalg.eigh((p["q"] + p["q"].T) / 2)
    along = vectors.T @ p["b"]
    return brentq(lambda x: np.linalg.norm(along / (values + x)) - p["radius"], 0.0, 1e3, xtol=1e-15, rtol=1e-15)


@functools.cache
def ball_root():
    return ball_multiplier(ball_hparams())


def ball_solution(hparams):
    """(Q + λ)⁻¹b, with λ from a Newton step of the secular equation ‖(Q + λ)⁻¹b‖ = radius at its root."""

    def excess(multiplier):
        return jnp.linalg.norm(ball_at(multiplier, hparams)) - hparams["radius"]

    root = ball_root()
    return ball_at(root - excess(root) / jax.grad(excess)(root), hparams)


def ball(condition):
    problem = bl.Problem(
        inner_loss=quadratic,
        projection=lambda x, hparams, data: projection_l2_ball(x, hparams["radius"]),
        optimality=condition,
    )
    ball_root()  # outside of jit
    return Case(problem, ball_hparams(), jax.jit(ball_solution)(ball_hparams()))


def by_scipy_ball(case):
    return differences(case, lambda hparams: ball_at(ball_multiplier(hparams), hparams), 0.02, accuracy=1e-12)


# A convex hull whose vertices move.

VERTICES = 22


def hull_hparams():
    """The point nearest to the target mixes eight vertices; the others are well behind its supporting plane."""
    rng = np.random.default_rng(24)
    vertices = rng.normal(size=(N, VERTICES))
    weights = np.where(np.arange(VERTICES) < 8, rng.uniform(0.5, 1.5, VERTICES), 0)
    behind = np.where(weights > 0, 0, rng.uniform(1.0, 2.0, VERTICES))
    normal = np.linalg.lstsq(vertices.T, 0.5 - behind)[0]
    return {"vertices": jnp.asarray(vertices), "target": jnp.asarray(vertices @ (weights / weights.sum()) + normal)}


def hull_weights(hparams):
    active = hparams["vertices"][:, :8]
    weights, _ = equality_qp(active.T @ active, -active.T @ hparams["target"], jnp.ones((1, 8)), jnp.ones(1))
    return jnp.zeros(VERTICES).at[:8].set(weights)


def hull_both(weights, hparams):
    return {"weights": weights, "point": hparams["vertices"] @ weights}


def hull(condition):
    problem = bl.Problem(
        inner_loss=lambda x, hparams, data: jnp.sum((x - hparams["target"]) ** 2) / 2, optimality=condition
    )
    return Case(problem, hull_hparams(), jax.jit(hull_weights)(hull_hparams()), measure=hull_both)


def by_cvxpy_hull(case):
    import cvxpy as cp

    p = cp.Variable(VERTICES)

    def solve(hparams):
        vertices, target = np.asarray(hparams["vertices"]), np.asarray(hparams["target"])
        cvxpy_minimize(cp.sum_squares(vertices @ p - target) / 2, [p >= 0, cp.sum(p) == 1])
        return {"weights": p.value, "point": vertices @ p.value}

    return differences(case, solve, 0.01, pattern=lambda value: inside(value["weights"]))


def _entry(problem, build, condition, *args, checks, modes=JIT):
    return Entry(type(condition), problem, functools.partial(build, condition, *args), checks, modes)


VERTICES_OF = {"vertices": lambda hparams, data: hparams["vertices"]}
HULL = "hull of moving vertices: weights and point"
BOX, NNLS, SVM = "box with moving bounds", "non-negative least squares", "dual of the multiclass SVM, rows of simplices"
BY_BOX = closed_form(box_solution, "closed form on the face"), Check(CVXPY, DIFFERENCES, by_cvxpy_box)
BY_NNLS = (
    closed_form(nnls_solution, "closed form on the face"),
    Check("differences of SciPy's active-set method", DIFFERENCES, by_scipy_nnls),
)
BY_SVM = closed_form(svm_solution, "closed form on the face"), Check(CVXPY, DIFFERENCES, by_cvxpy_svm)
BY_BALL = (
    closed_form(ball_solution, "closed form, secular equation"),
    Check("differences of SciPy's root finder", DIFFERENCES, by_scipy_ball),
)
BY_HULL = (
    closed_form(lambda hparams: hull_both(hull_weights(hparams), hparams), "closed form on the face"),
    Check(CVXPY, DIFFERENCES, by_cvxpy_hull),
)
ENTRIES = [
    _entry(BOX, box, ProjectedGradient(), checks=BY_BOX),
    _entry(BOX + ", general system", box, ProjectedGradient(), False, checks=BY_BOX),
    _entry(BOX + ", one step for all blocks", box, BlockProximalGradient(), checks=BY_BOX),
    _entry(NNLS, nnls, ProjectedGradient(), checks=BY_NNLS, modes=(*JIT, "root_vjp, jit", "jacfwd, jit")),
    _entry(NNLS + ", general system, a step of 0.01", nnls, ProjectedGradient(step=0.01), False, checks=BY_NNLS),
    _entry(SVM, svm, ProjectedGradient(), checks=BY_SVM),
    _entry(SVM + ", general system", svm, ProjectedGradient(), False, checks=BY_SVM),
    _entry("quadratic on a Euclidean ball, general system", ball, ProjectedGradient(), checks=BY_BALL),
    _entry(SVM + ", a step per row", svm, BlockProximalGradient(), checks=BY_SVM),
    _entry(SVM + ", a step per row, general system", svm, BlockProximalGradient(), False, checks=BY_SVM),
    _entry(SVM + ", with zeros", svm, MirrorStep(), checks=BY_SVM, modes=(*JIT, "hypergradient, jit")),
    _entry(SVM + ", tiny entries in place of zeros", svm, MirrorStep(), True, 1e-30, checks=BY_SVM),
    _entry(SVM + ", with zeros, a step of 0.1", svm, MirrorStep(step=0.1), checks=BY_SVM),
    _entry(BOX + ", Fermi–Dirac entropy", box, fermi_dirac(), checks=BY_BOX),
    _entry(BOX + ", Euclidean mirror map", box, euclidean(), checks=BY_BOX),
    _entry(HULL, hull, ConvexHull(**VERTICES_OF), checks=BY_HULL, modes=(*JIT, "hypergradient, jit")),
    _entry(HULL + ", a step of 0.01", hull, ConvexHull(**VERTICES_OF, step=0.01), checks=BY_HULL),
]
