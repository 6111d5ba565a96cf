"""Solvers of other packages as black boxes: called through `jax.pure_callback`, judged like our own, never differentiated."""

from bilevel.inner.external._cvxpy import CVXPY
from bilevel.inner.external._linear_svc import SklearnLinearSVC
from bilevel.inner.external._python import Python
from bilevel.inner.external._scikit_learn import (
    SklearnElasticNet,
    SklearnLasso,
    SklearnLogisticRegression,
    SklearnRidge,
)
from bilevel.inner.external._scipy import SciPyMinimize, SciPyRoot

__all__ = [
    "CVXPY",
    "Python",
    "SciPyMinimize",
    "SciPyRoot",
    "SklearnElasticNet",
    "SklearnLasso",
    "SklearnLinearSVC",
    "SklearnLogisticRegression",
    "SklearnRidge",
]
