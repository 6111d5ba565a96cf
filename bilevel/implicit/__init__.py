"""The engine: differentiate what a solver returns through the condition that its solution satisfies."""

from bilevel.implicit._root import attach, custom_fixed_point, custom_root, root_jvp, root_vjp

__all__ = ["attach", "custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]
