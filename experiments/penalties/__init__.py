"""Penalties by gradient against penalties by grid."""
