"""Inner solvers of quadratic programs."""
