"""The engine: differentiate the answer of a solver through the optimality condition that it satisfies."""

from bilevel.implicit._root import attach, custom_fixed_point, custom_root, root_jvp, root_vjp

__all__ = ["attach", "custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]
