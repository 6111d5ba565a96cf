"""Projections and proximal operators, under the names and argument order of jaxopt."""

from bilevel.operators import projection, prox

__all__ = ["projection", "prox"]
