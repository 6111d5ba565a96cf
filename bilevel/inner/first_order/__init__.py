"""Inner solvers that use gradients and maps alone."""
