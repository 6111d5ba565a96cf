"""Inner solvers that solve linear systems with the curvature of the loss."""
