"""Tasks: each yields a problem, its data, start values and metrics. A task never chooses a solver."""

from bilevel.tasks._base import Setup, Task
from bilevel.tasks.distillation import Distillation
from bilevel.tasks.lasso import Lasso
from bilevel.tasks.logistic import Logistic
from bilevel.tasks.ridge import Ridge
from bilevel.tasks.svm import SVM

__all__ = ["SVM", "Distillation", "Lasso", "Logistic", "Ridge", "Setup", "Task"]
