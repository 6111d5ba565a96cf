"""Proximal operators prox_{scaling·g}(x) = argmin over y of ½‖y − x‖² + scaling·g(y), under the names of jaxopt."""

from bilevel.operators.prox._nuclear import prox_nuclear_norm
from bilevel.operators.prox._separable import (
    make_prox_from_projection,
    prox_elastic_net,
    prox_group_lasso,
    prox_lasso,
    prox_log1p,
    prox_non_negative_lasso,
    prox_non_negative_ridge,
    prox_none,
    prox_ridge,
)
from bilevel.operators.prox._total_variation import prox_total_variation

__all__ = [
    "make_prox_from_projection",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_lasso",
    "prox_log1p",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_none",
    "prox_nuclear_norm",
    "prox_ridge",
    "prox_total_variation",
]
