"""Every public operator at a random generic point, with what its answers must satisfy: the conformance list."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from bilevel.operators import bregman, projection, prox

N = 6
SIZES = [1, 2, 3, 7, 16, 17, 40]
STEP = 1e-6  # of differences
seeds = st.integers(0, 2**32 - 1)


def examples(count):
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
    )


@st.composite
def vectors(draw):
    size = draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(["spread", "tied", "floats"]))
    if kind == "floats":
        return np.array(draw(st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=size, max_size=size)))
    rng = np.random.default_rng(draw(seeds))
    return rng.integers(-2, 3, size).astype(float) if kind == "tied" else 3 * rng.normal(size=size)


@dataclasses.dataclass(frozen=True)
class Case:
    """call(x, *args) at point(rng) = (x, *args).

    violation(p, *args): by how much a point breaks the constraints of a projection. objective(y, *args): of a prox, with
    its step. ways(rng): directions of (x, *args) that keep the problem solvable. kinks: points where finite derivatives
    are all that is asked. `convex` says whether the set or the penalty is.
    """

    call: Callable[..., Any]
    point: Callable[[Any], tuple]
    violation: Callable[..., float] | None = None
    objective: Callable[..., float] | None = None
    ways: Callable[[Any], tuple] | None = None
    kinks: tuple = ()
    convex: bool = True

    def directions(self, rng):
        if self.ways is not None:
            return self.ways(rng)
        return tuple(rng.normal(size=np.shape(a)) for a in self.point(rng))

    @functools.cached_property
    def value(self):
        return jax.jit(self.call)

    @functools.cached_property
    def slope(self):
        return jax.jit(lambda point, ways: jax.jvp(self.call, point, ways)[1])

    @functools.cached_property
    def curve(self):
        """The pulled-back weights, and their derivative along a direction: a product with second derivatives."""
        return jax.jit(lambda point, ways, weights: jax.jvp(lambda *p: jax.vjp(self.call, *p)[1](weights), point, ways))

    def pull(self, point, weights):
        return self.curve(point, tuple(np.zeros_like(a) for a in point), weights)[0]


def positive(rng, *shape):
    return rng.uniform(0.5, 2.0, shape)


def vector(*others):
    """A vector of N normal entries, then what the functions of rng say."""
    return lambda rng: (2 * rng.normal(size=N), *(other(rng) for other in others))


def size(low, high):
    return lambda rng: rng.uniform(low, high)


def total(p, amount):
    return abs(p.sum() - amount) + max(-p.min(), 0)


def excess(amount, bound):
    return max(float(amount) - float(bound), 0)


def positive_violation(p):
    return max(-float(np.min(p)), 0)


def section(rng):
    alpha, beta, w = -positive(rng, N), positive(rng, N), rng.normal(size=N)
    return 2 * rng.normal(size=N), alpha, beta, w, w @ rng.uniform(alpha, beta)


def affine(rng):
    return rng.normal(size=N), rng.normal(size=(3, N)), rng.normal(size=3)


def polyhedron(rng):
    inside = rng.normal(size=N)
    a, g = rng.normal(size=(2, N)), rng.normal(size=(8, N))
    return 4 * rng.normal(size=N), a, a @ inside, g, g @ inside + positive(rng, 8)


def outside(p, low, high):
    return max(positive_violation(p - low), positive_violation(high - p))


def transport(rng):
    return 2 * rng.normal(size=(3, 4)), rng.dirichlet(np.full(3, 5.0)), rng.dirichlet(np.full(4, 5.0))


def transport_ways(rng):
    x, a, b = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=4)
    return x, a - a.mean(), b - b.mean()


def marginals(p, a, b):
    return max(np.abs(p.sum(1) - a).max(), np.abs(p.sum(0) - b).max(), positive_violation(p))


def coupling(project):
    return Case(
        lambda x, a, b: project(x, (a, b)),
        transport,
        marginals,
        ways=transport_ways,
        kinks=((np.eye(3, 4), np.array([1.0, 0, 0]), np.array([1.0, 0, 0, 0])),),
    )


def square(rng):
    return (2 * rng.normal(size=(4, 4)),)


def symmetric(rng):
    x = rng.normal(size=(4, 4))
    return (x + x.T,)


def exponential(p, sign=1):
    """The least change of one coordinate that leads into the cone; of the last one alone it is ill-conditioned near its axis."""
    a, b, c = p
    if sign > 0 and b > 0:  # b·exp(a/b) ≤ c
        return max(min(b * np.exp(a / b) - c, a - b * np.log(c / b) if c > 0 else np.inf), 0)
    if sign < 0 and a < 0:  # the dual cone: −a·exp(b/a) ≤ e·c
        return max(min(-a * np.exp(b / a) / np.e - c, a * (1 + np.log(-c / a)) - b if c > 0 else np.inf), 0)
    return max(a, -b, -c, 0)


def three(rng):
    return (2 * rng.normal(size=3),)


def penalty(g):
    return lambda y, *args: float(args[-1]) * float(g(y, *args[:-1]))


def on_orthant(g):
    return lambda y, *args: g(y, *args) if y.min() >= 0 else np.inf


ZEROS = np.zeros(N)
ONES = np.ones(N)


def l1(p):
    return np.abs(p).sum()


def largest(p):
    return np.abs(p).max()


def sphere(project, norm):
    return Case(
        project,
        vector(size(0.5, 4)),
        lambda p, value: abs(norm(p) - value),
        kinks=((ZEROS, 1.0), (ONES, 0.0)),
        convex=False,
    )


def ball(project, norm, *kinks, sizes=(0.5, 8)):
    return Case(
        project,
        vector(size(*sizes)),
        lambda p, bound: excess(norm(p), bound),
        kinks=((ZEROS, 0.0), (ZEROS, 1.0), *kinks),
    )


def penalized(call, g, *kinks, most=2):
    """The prox of a penalty with one factor."""
    return Case(
        call, vector(size(0.2, most), size(0.5, 2)), objective=g, kinks=((ZEROS, 0.0, 1.0), (ONES, 1.0, 1.0), *kinks)
    )


def row(rng):
    return rng.normal(size=N), rng.normal(size=N), rng.normal()


PROJECTIONS = {
    "projection_non_negative": Case(
        projection.projection_non_negative, vector(), positive_violation, kinks=((ZEROS,),)
    ),
    "projection_box": Case(
        lambda x, low, high: projection.projection_box(x, (low, high)),
        lambda rng: (2 * rng.normal(size=N), -positive(rng, N), positive(rng, N)),
        outside,
        kinks=((ONES, -ONES, ONES), (ZEROS, ZEROS, ZEROS)),
    ),
    "projection_hypercube": Case(
        projection.projection_hypercube, vector(size(0.5, 2)), lambda p, unit: outside(p, 0, unit), kinks=((ONES, 1.0),)
    ),
    "projection_simplex": Case(projection.projection_simplex, vector(size(0.5, 4)), total, kinks=((ZEROS, 0.0),)),
    "projection_sparse_simplex": Case(
        lambda x, value: projection.projection_sparse_simplex(x, 3, value=value),
        vector(size(0.5, 4)),
        lambda p, value: total(p, value) + max(np.count_nonzero(p) - 3, 0),
        kinks=((ZEROS, 1.0),),
        convex=False,
    ),
    "projection_l1_sphere": sphere(projection.projection_l1_sphere, l1),
    "projection_l2_sphere": sphere(projection.projection_l2_sphere, np.linalg.norm),
    "projection_l1_ball": ball(projection.projection_l1_ball, l1, (ONES, 6.0), sizes=(1, 12)),
    "projection_l2_ball": ball(projection.projection_l2_ball, np.linalg.norm, (ONES, np.sqrt(N))),
    "projection_linf_ball": ball(projection.projection_linf_ball, largest, (ONES, 1.0), sizes=(0.5, 4)),
    "projection_hyperplane": Case(
        lambda x, a, b: projection.projection_hyperplane(x, (a, b)),
        row,
        lambda p, a, b: abs(a @ p - b),
        kinks=((ONES, ZEROS, 0.0),),
    ),
    "projection_halfspace": Case(
        lambda x, a, b: projection.projection_halfspace(x, (a, b)),
        row,
        lambda p, a, b: excess(a @ p, b),
        kinks=((ONES, ZEROS, 0.0), (ONES, ONES, 6.0)),
    ),
    "projection_affine_set": Case(
        lambda x, a, b: projection.projection_affine_set(x, (a, b)),
        affine,
        lambda p, a, b: np.abs(a @ p - b).max(),
        kinks=((ONES, np.ones((2, N)), np.ones(2)), (ONES, np.zeros((2, N)), np.zeros(2))),
    ),
    "projection_polyhedron": Case(
        lambda x, *rows: projection.projection_polyhedron(x, rows, check_feasible=False),
        polyhedron,
        lambda p, a, b, g, h: max(np.abs(a @ p - b).max(), (g @ p - h).max(), 0),
        kinks=((ONES, np.zeros((2, N)), np.zeros(2), np.ones((8, N)), np.full(8, 6.0)),),
    ),
    "projection_box_section": Case(
        lambda x, *rest: projection.projection_box_section(x, rest),
        section,
        lambda p, alpha, beta, w, c: max(outside(p, alpha, beta), abs(w @ p - c)),
        kinks=((ONES, ZEROS, ONES, ONES, 6.0), (ZEROS, ZEROS, ONES, ONES, 0.0), (ONES, ZEROS, ONES, ZEROS, 0.0)),
    ),
    "projection_transport": coupling(projection.projection_transport),
    "kl_projection_transport": coupling(projection.kl_projection_transport),
    "projection_birkhoff": Case(
        projection.projection_birkhoff, square, lambda p: marginals(p, 1, 1), kinks=((np.eye(4),), (np.zeros((4, 4)),))
    ),
    "kl_projection_birkhoff": Case(
        projection.kl_projection_birkhoff, square, lambda p: marginals(p, 1, 1), kinks=((np.zeros((4, 4)),),)
    ),
    "projection_isotonic": Case(
        lambda x, low, high: projection.projection_isotonic(x, True, low, high),
        vector(size(-2, -0.2), size(0.2, 2)),
        lambda p, low, high: max(outside(p, low, high), positive_violation(np.diff(p))),
        kinks=((ZEROS, 0.0, 0.0), (ONES, -1.0, 1.0)),
    ),
    "projection_second_order_cone": Case(
        projection.projection_second_order_cone,
        vector(),
        lambda p: excess(np.linalg.norm(p[1:]), p[0]),
        kinks=((ZEROS,), (np.eye(N)[0],), (-np.eye(N)[0],), (np.eye(N)[0] + np.eye(N)[1],)),
    ),
    "projection_psd_cone": Case(
        projection.projection_psd_cone,
        symmetric,
        lambda p: max(-np.linalg.eigvalsh(p).min(), 0) + np.abs(p - p.T).max(),
        kinks=((np.zeros((4, 4)),), (np.eye(4),), (-np.eye(4),), (np.diag([1.0, 0, 0, -1]),)),
    ),
    "projection_exponential_cone": Case(
        projection.projection_exponential_cone,
        three,
        exponential,
        kinks=tuple((np.array(v),) for v in [(0.0, 0, 0), (0, 1, 1), (-1, 0, 1), (-1, -1, 0), (0, 0, -1), (1, 0, 0)]),
    ),
    "projection_dual_exponential_cone": Case(
        projection.projection_dual_exponential_cone,
        three,
        lambda p: exponential(p, sign=-1),
        kinks=((np.zeros(3),), (np.array([0.0, 1, 1]),)),
    ),
}

PROXES = {
    "prox_none": Case(lambda x, s: prox.prox_none(x, None, s), vector(size(0.5, 2)), objective=lambda y, s: 0.0),
    "prox_lasso": penalized(prox.prox_lasso, penalty(lambda y, reg: reg * l1(y))),
    "prox_non_negative_lasso": penalized(
        prox.prox_non_negative_lasso, on_orthant(penalty(lambda y, reg: reg * y.sum()))
    ),
    "prox_group_lasso": penalized(
        prox.prox_group_lasso,
        penalty(lambda y, reg: reg * np.linalg.norm(y)),
        (ZEROS, 1.0, 1.0),
        (ONES, np.sqrt(N), 1.0),
        most=4,
    ),
    "prox_ridge": penalized(prox.prox_ridge, penalty(lambda y, reg: reg * (y @ y) / 2)),
    "prox_non_negative_ridge": penalized(
        prox.prox_non_negative_ridge, on_orthant(penalty(lambda y, reg: reg * (y @ y) / 2))
    ),
    "prox_elastic_net": Case(
        lambda x, reg, ratio, s: prox.prox_elastic_net(x, (reg, ratio), s),
        vector(lambda rng: positive(rng, N), size(0.2, 2), size(0.5, 2)),
        objective=penalty(lambda y, reg, ratio: np.sum(reg * (np.abs(y) + ratio * y**2 / 2))),
        kinks=((ONES, ONES, 1.0, 1.0),),
    ),
    "prox_log1p": Case(
        lambda x, reg, width, s: prox.prox_log1p(x, (reg, width), s),
        vector(size(0.2, 2), size(0.2, 2), size(0.5, 2)),
        objective=penalty(lambda y, reg, width: reg * np.log1p(np.abs(y) / width).sum()),
        kinks=((ZEROS, 1.0, 1.0, 1.0), (ONES, 1.0, 1.0, 1.0), (ONES, 0.0, 1.0, 1.0)),
        convex=False,
    ),
    "prox_nuclear_norm": Case(
        prox.prox_nuclear_norm,
        lambda rng: (2 * rng.normal(size=(3, 4)), rng.uniform(0.5, 3), rng.uniform(0.5, 2)),
        objective=penalty(lambda y, reg: reg * np.linalg.svd(y.reshape(3, 4), compute_uv=False).sum()),
        kinks=((np.zeros((3, 4)), 1.0, 1.0), (np.zeros((3, 4)), 0.0, 1.0), (np.eye(3, 4), 1.0, 1.0)),
    ),
    "prox_total_variation": Case(
        prox.prox_total_variation,
        lambda rng: (2 * rng.normal(size=9), rng.uniform(0.1, 2), rng.uniform(0.5, 2)),
        objective=penalty(lambda y, reg: reg * np.abs(np.diff(y)).sum()),
        kinks=((np.zeros(9), 1.0, 1.0), (np.arange(9.0), 0.0, 1.0), (np.ones(9), 0.0, 1.0)),
    ),
    "make_prox_from_projection": Case(
        lambda x, value, s: prox.make_prox_from_projection(projection.projection_simplex)(x, value, s),
        vector(size(0.5, 2), size(0.5, 2)),
        objective=lambda y, value, s: 0.0 if total(y, value) < 1e-12 else np.inf,
    ),
}

MIRRORS = {
    "projection_kl_simplex": Case(
        bregman.projection_kl_simplex,
        vector(size(0.5, 4)),
        total,
        kinks=((jnp.array([0.0, -jnp.inf, 1, 1, 1, 1]), 1.0),),
    )
}

ALL = PROJECTIONS | PROXES | MIRRORS
KL = {"kl_projection_transport", "kl_projection_birkhoff"}
