"""Least squares with a nonsmooth term: ProximalGradient, and BlockProximalGradient with a step per coordinate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.operators.prox import prox_lasso
from bilevel.optimality import BlockProximalGradient, ProximalGradient
from catalog.core import ALL, DIFFERENCES, JIT, Case, Check, Entry, closed_form, differences
from catalog.solvers import Root, cvxpy_minimize

N, M, GROUPS = 24, 40, (6, 4)
RNG = np.random.default_rng(7)
FEATURES = RNG.normal(size=(M, N)) @ np.diag(RNG.permutation(np.exp(np.linspace(-1.2, 1.2, N))))
SUPPORT = np.sort(RNG.permutation(N)[:9])


def half_squares(x, hparams, data):
    """½‖Xx − y‖² with y in hparams."""
    return jnp.sum((FEATURES @ x.reshape(-1) - hparams["targets"]) ** 2) / 2


def prox_elastic_net(x, hparams, data, step):
    """Of Σ l1ᵢ|xᵢ| + ½ l2 ‖x‖²."""
    return prox_lasso(x, hparams["l1"], step) / (1 + step * hparams.get("l2", 0.0))


def prox_group(x, hparams, data, step):
    """Of l1 Σ‖rows‖; a step for all rows or one per row, shaped (rows, 1)."""
    squares = jnp.sum(x**2, axis=1, keepdims=True)
    norms = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    threshold = step * hparams["l1"]
    return jnp.where(norms > threshold, 1 - threshold / norms, 0) * jnp.where(squares > 0, x, 0)


def block_lipschitz(hparams, data):
    """A number above ‖X_j‖² for every coordinate, so that T contracts."""
    return 3 * jnp.sum(FEATURES**2, axis=0)


HPARAMS = {
    "lasso": {"l1": 15.0},
    "weighted lasso": {"l1": np.linspace(8.0, 25.0, N)},
    "elastic net": {"l1": 12.0, "l2": 4.0},
    "group lasso": {"l1": 20.0},
}


@functools.cache
def hparams_of(name):
    """With targets whose solution has the support SUPPORT, or three of six groups, well away from a change."""
    rng = np.random.default_rng(8)
    x = np.zeros(N)
    if name == "group lasso":
        rows = rng.normal(size=GROUPS) / 3
        rows[1::2] /= 2 * np.linalg.norm(rows[1::2], axis=1, keepdims=True)
        x = np.where(np.arange(GROUPS[0])[:, None] % 2, 0, rows).ravel()
        subgradient = np.where(
            np.arange(GROUPS[0])[:, None] % 2, rows, rows / np.linalg.norm(rows, axis=1)[:, None]
        ).ravel()
    else:
        x[SUPPORT] = rng.choice([-1, 1], SUPPORT.size) * rng.uniform(0.5, 1.5, SUPPORT.size)
        subgradient = np.where(x != 0, np.sign(x), rng.uniform(-0.5, 0.5, N))
    hparams = HPARAMS[name]
    correlation = hparams["l1"] * subgradient + hparams.get("l2", 0.0) * x
    noise = rng.normal(size=M)
    noise -= FEATURES @ np.linalg.lstsq(FEATURES, noise)[0]
    targets = FEATURES @ x + FEATURES @ np.linalg.solve(FEATURES.T @ FEATURES, correlation) + noise
    return {key: jnp.asarray(value) for key, value in (hparams | {"targets": targets}).items()}


# The closed form on the support, and scikit-learn's coordinate descent.


def on_support(support, signs, hparams):
    """x with x_S = (X_SᵀX_S + l2)⁻¹(X_Sᵀy − l1 sign)."""
    inside = FEATURES[:, support]
    penalty = jnp.broadcast_to(hparams["l1"], (N,))[support]
    gram = inside.T @ inside + hparams.get("l2", 0.0) * np.eye(len(support))
    found = jnp.linalg.solve(gram, inside.T @ hparams["targets"] - penalty * signs)
    return jnp.zeros(N).at[support].set(found)


def scikit_learn(hparams):
    """Lasso or ElasticNet on columns divided by the penalties, so that one penalty is left."""
    from sklearn.linear_model import ElasticNet, Lasso

    l1, l2 = np.asarray(hparams["l1"]), float(hparams.get("l2", 0.0))
    common = float(np.mean(l1))
    scaling = np.broadcast_to(l1 / common, (N,))
    settings = {"fit_intercept": False, "tol": 1e-14, "max_iter": 1_000_000}
    if l2 > 0:
        model = ElasticNet(alpha=(common + l2) / M, l1_ratio=common / (common + l2), **settings)
    else:
        model = Lasso(alpha=common / M, **settings)
    return model.fit(FEATURES / scaling, np.asarray(hparams["targets"])).coef_ / scaling


@functools.cache
def support_of(name):
    """The support and the signs there, from scikit-learn."""
    found = scikit_learn(hparams_of(name))
    support = np.flatnonzero(found)
    return support, np.sign(found[support])


def sparse(name, condition, separable):
    statement = bl.Minimization(
        loss=half_squares, prox=prox_elastic_net, separable=separable, block_lipschitz=block_lipschitz
    )
    problem = bl.Problem(inner=statement, optimality=condition)
    return Case(problem, hparams_of(name), jax.jit(functools.partial(on_support, *support_of(name)))(hparams_of(name)))


def by_scikit_learn(case):
    return differences(case, scikit_learn, 0.003, pattern=lambda x: x != 0, accuracy=1e-8)


def by_cvxpy_sparse(case):
    import cvxpy as cp

    x, l1, targets = cp.Variable(N), cp.Parameter(N, nonneg=True), cp.Parameter(M)
    root_l2 = cp.Parameter(nonneg=True)
    loss = cp.sum_squares(FEATURES @ x - targets) / 2 + cp.sum_squares(root_l2 * x) / 2

    def solve(hparams):
        l1.value = np.broadcast_to(hparams["l1"], (N,))
        targets.value, root_l2.value = np.asarray(hparams["targets"]), np.sqrt(float(hparams.get("l2", 0.0)))
        cvxpy_minimize(loss + l1 @ cp.abs(x))
        return x.value

    return differences(case, solve, 0.01, pattern=lambda x: np.abs(x) > 1e-5)


# Group lasso: CVXPY finds the active groups, and SciPy solves the smooth system of these.


def active_groups(x):
    return np.linalg.norm(x, axis=1) > 1e-5


@functools.cache
def group_start():
    import cvxpy as cp

    hparams, x = hparams_of("group lasso"), cp.Variable(GROUPS)
    loss = cp.sum_squares(FEATURES @ cp.vec(x, order="C") - np.asarray(hparams["targets"])) / 2
    cvxpy_minimize(loss + float(hparams["l1"]) * cp.sum(cp.norm(x, 2, axis=1)))
    return x.value


@functools.cache
def group_root():
    active = np.flatnonzero(active_groups(group_start()))

    def loss(flat, hparams):
        rows = flat.reshape(-1, GROUPS[1])
        x = jnp.zeros(GROUPS).at[active].set(rows)
        return half_squares(x, hparams, None) + hparams["l1"] * jnp.sum(jnp.linalg.norm(rows, axis=1))

    return Root(jax.grad(loss))


def group_solution(hparams):
    """Zero outside of the active groups, with the subgradients there asserted to be strictly inside of the ball."""
    start = group_start()
    x = np.zeros(GROUPS)
    x[active_groups(start)] = group_root()(start[active_groups(start)].ravel(), hparams).reshape(-1, GROUPS[1])
    subgradient = FEATURES.T @ (hparams["targets"] - FEATURES @ x.ravel()) / hparams["l1"]
    assert (np.linalg.norm(subgradient.reshape(GROUPS), axis=1)[~active_groups(x)] < 0.95).all()
    return jnp.asarray(x)


def group(condition, separable):
    problem = bl.Problem(inner_loss=half_squares, prox=prox_group, separable=separable, optimality=condition)
    hparams = hparams_of("group lasso")
    return Case(problem, hparams, group_solution(hparams))


def by_group_solution(case):
    return differences(case, group_solution, 0.02, pattern=active_groups, accuracy=1e-12)


def _sparse(name, condition, text="", separable=True, modes=JIT, more=()):
    """A problem that scikit-learn solves: the closed form, and differences of scikit-learn."""
    closed = closed_form(lambda hparams: on_support(*support_of(name), hparams), "closed form on the support")
    return Entry(
        type(condition),
        f"{name}{text}{'' if separable else ', general system'}",
        functools.partial(sparse, name, condition, separable),
        (closed, Check("differences of scikit-learn", DIFFERENCES, by_scikit_learn), *more),
        modes,
    )


def _group(condition, separable, modes=JIT):
    return Entry(
        type(condition),
        "group lasso" + (", blocks of rows" if separable else ", general system"),
        functools.partial(group, condition, separable),
        (Check("differences of SciPy on the active groups, polished by Newton steps", DIFFERENCES, by_group_solution),),
        modes,
    )


BY_CVXPY = (Check("differences of CVXPY with Clarabel", DIFFERENCES, by_cvxpy_sparse),)
ENTRIES = [
    _sparse("lasso", ProximalGradient(), modes=ALL),
    _sparse("lasso", ProximalGradient(), separable=False),
    _sparse("lasso", ProximalGradient(step=1e-3), ", a step of 0.001"),
    _sparse("lasso", ProximalGradient(support=12), ", support of at most 12"),
    _sparse("weighted lasso", ProximalGradient(), more=BY_CVXPY),
    _sparse("weighted lasso", ProximalGradient(), separable=False),
    _sparse("elastic net", ProximalGradient()),
    _sparse("elastic net", ProximalGradient(), separable=False),
    _sparse("lasso", BlockProximalGradient(), ", a step per coordinate", modes=(*JIT, "hypergradient, jit")),
    _sparse("lasso", BlockProximalGradient(), ", a step per coordinate", separable=False),
    _sparse("elastic net", BlockProximalGradient(step=1e-3), ", one step"),
    _group(ProximalGradient(), "rows"),
    _group(ProximalGradient(), False),
    _group(BlockProximalGradient(), "rows"),
]
