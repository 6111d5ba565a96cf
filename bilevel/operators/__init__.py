"""Projections and proximal operators under the names and argument order of jaxopt, and mirror maps."""

from bilevel.operators import bregman, projection, prox

__all__ = ["bregman", "projection", "prox"]
