"""Tasks: each states a problem with its data, start values and metrics. A task never chooses the solver of a run."""

from bilevel.tasks._base import Setup, Task
from bilevel.tasks.data_cleaning import DataCleaning
from bilevel.tasks.deq import DEQ
from bilevel.tasks.dictionary import Dictionary
from bilevel.tasks.distillation import Distillation
from bilevel.tasks.elastic_net import ElasticNet
from bilevel.tasks.group_lasso import GroupLasso
from bilevel.tasks.hyper_representation import HyperRepresentation
from bilevel.tasks.lasso import Lasso
from bilevel.tasks.logistic import Logistic
from bilevel.tasks.meta import Meta
from bilevel.tasks.molecular_dynamics import MolecularDynamics
from bilevel.tasks.qp_layer import QPLayer
from bilevel.tasks.ridge import Ridge
from bilevel.tasks.svm import SVM

__all__ = [
    "DEQ",
    "SVM",
    "DataCleaning",
    "Dictionary",
    "Distillation",
    "ElasticNet",
    "GroupLasso",
    "HyperRepresentation",
    "Lasso",
    "Logistic",
    "Meta",
    "MolecularDynamics",
    "QPLayer",
    "Ridge",
    "Setup",
    "Task",
]
