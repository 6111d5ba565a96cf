"""Solvers of other packages as black boxes: called through `jax.pure_callback`, judged like our own, never differentiated."""
