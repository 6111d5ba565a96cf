"""Shared fixtures. Double precision where a test asks for `x64`; a fresh precision for every test."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # compile faster; the command-line tests run optimized


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """Double precision, and no implicit dtype promotion: for tests of our own rooms."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions, the other tests' default left alone."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param
