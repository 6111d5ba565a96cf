"""Inner solvers that use what a `LinearModel`, or a loss known by its blocks, tells beyond its gradient."""
