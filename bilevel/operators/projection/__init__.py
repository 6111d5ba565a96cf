"""Projections under the names and argument order of jaxopt, differentiable in every real argument. Rows by `jax.vmap`."""

from bilevel.operators.projection._affine import projection_affine_set, projection_halfspace, projection_hyperplane
from bilevel.operators.projection._balls import (
    projection_l1_ball,
    projection_l1_sphere,
    projection_l2_ball,
    projection_l2_sphere,
    projection_linf_ball,
)
from bilevel.operators.projection._boxes import (
    projection_box,
    projection_box_section,
    projection_hypercube,
    projection_non_negative,
)
from bilevel.operators.projection._cones import (
    projection_dual_exponential_cone,
    projection_exponential_cone,
    projection_psd_cone,
    projection_second_order_cone,
)
from bilevel.operators.projection._isotonic import projection_isotonic
from bilevel.operators.projection._polyhedron import projection_polyhedron
from bilevel.operators.projection._simplex import projection_simplex, projection_sparse_simplex
from bilevel.operators.projection._transport import (
    kl_projection_birkhoff,
    kl_projection_transport,
    projection_birkhoff,
    projection_transport,
)

__all__ = [
    "kl_projection_birkhoff",
    "kl_projection_transport",
    "projection_affine_set",
    "projection_birkhoff",
    "projection_box",
    "projection_box_section",
    "projection_dual_exponential_cone",
    "projection_exponential_cone",
    "projection_halfspace",
    "projection_hypercube",
    "projection_hyperplane",
    "projection_isotonic",
    "projection_l1_ball",
    "projection_l1_sphere",
    "projection_l2_ball",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_polyhedron",
    "projection_psd_cone",
    "projection_second_order_cone",
    "projection_simplex",
    "projection_sparse_simplex",
    "projection_transport",
]
