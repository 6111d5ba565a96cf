"""Studies: measurements over many runs, such as the figures of a paper. One contract, `Study`."""

from bilevel.studies._base import Findings, Study
from bilevel.studies._jacobian_precision import JacobianPrecision

__all__ = ["Findings", "JacobianPrecision", "Study"]
