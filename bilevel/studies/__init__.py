"""Studies: measurements over many runs, such as the figures of a paper. One contract, `Study`."""

from bilevel.studies._base import Findings, Study
from bilevel.studies._dictionary_learning import DictionaryLearning
from bilevel.studies._distillation import DistilledAccuracy
from bilevel.studies._jacobian_precision import JacobianPrecision
from bilevel.studies._penalties import Penalties
from bilevel.studies._sensitivities import Sensitivities
from bilevel.studies._svm_runtime import SVMRuntime

__all__ = [
    "DictionaryLearning",
    "DistilledAccuracy",
    "Findings",
    "JacobianPrecision",
    "Penalties",
    "SVMRuntime",
    "Sensitivities",
    "Study",
]
