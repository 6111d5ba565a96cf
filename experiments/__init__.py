"""Measurements over many runs, a package for each publication or topic."""
