"""Hypergradient estimators. One contract, `Estimator.estimate`; every estimate has the statuses of its solves."""

from bilevel.hypergrad._base import Estimator, Hypergradient, Solve
from bilevel.hypergrad._fit import misfits
from bilevel.hypergrad._implicit import Implicit
from bilevel.hypergrad._unrolled import Unrolled
from bilevel.hypergrad._verdict import Level, Reason, Verdict

__all__ = ["Estimator", "Hypergradient", "Implicit", "Level", "Reason", "Solve", "Unrolled", "Verdict", "misfits"]
