"""liblinear's support vector machine of Crammer and Singer, and its dual variables, which scikit-learn does not return.

With Y one-hot, K = XXᵀω/θ and S = K(Y − x) the scores, the dual is to minimize ½⟨Y − x, K(Y − x)⟩ + ⟨x, Y⟩ over rows of x on
simplices. Its gradient is Y − S, so that a row has its support where S − Y is largest. On these faces the dual solves
equations: S − Y equals a number tᵢ along the support of each row, and rows sum to one,

    [[blocks of K, one per class, −Bᵀ]; [B, 0]] [x on the support; t] = …

A row with one class in its support is a unit vector and takes no part.
"""

import dataclasses
from typing import Any

import numpy as np

from bilevel._needs import linear_model
from bilevel.inner.external._base import Answer
from bilevel.inner.external._scikit_learn import Rows, _ScikitLearn, iterations, require_classes, split

_TOLERANCES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnLinearSVC(_ScikitLearn):
    """The multiclass support vector machine by `sklearn.svm.LinearSVC` (liblinear): minimize ω Σ loss + ½Σ l2ⱼ‖wⱼ‖².

    X is dense or sparse, shape (m, n). params is the dual x, shape (m, k), rows on simplices: W = Xᵀ(Y − x)ω/l2. liblinear
    returns W; x follows from the classes at each row's margin, by a dense linear system of as many unknowns as there are such
    classes. rtol, atol and statuses are as for `Python`; every class needs a row.

    Args:
      max_steps: limit on liblinear's iterations.
      tol: liblinear's own tolerance.

    References: Crammer & Singer 2001; Fan, Chang, Hsieh, Wang & Lin, LIBLINEAR, 2008.

    Example:
      >>> import bilevel as bl
      >>> from bilevel.tasks import SVM
      >>> made = SVM(data="iris").setup(0, "float32")
      >>> found = bl.inner.SklearnLinearSVC(rtol=1e-4).solve(made.problem, made.params, made.hparams, made.data)
      >>> print(bl.Status(int(found.status)).word)
      converged
    """

    needs = (linear_model("crammer_singer", l1=False),)

    tol: float = 1e-10
    max_steps: int = 1_000_000

    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        from sklearn.svm import LinearSVC

        labels, classes = rows.targets.astype(int), start.shape[1]
        require_classes(labels, classes)
        scale, root = split(np.sqrt(rows.l2))
        features, penalty = rows.scaled(scale), root**2 / rows.weight
        model = self._model(LinearSVC, multi_class="crammer_singer", C=1 / penalty, random_state=0)
        model.fit(features, labels)
        weights = model.coef_.T
        if classes == 2:  # scikit-learn returns the difference of two vectors that add up to zero
            weights = np.concatenate([-weights / 2, weights / 2], axis=1)
        return Answer(_Dual(features, labels, classes, penalty).of(weights), iterations(model))


class _Dual:
    """The dual variables of primal weights."""

    def __init__(self, features: Any, labels: np.ndarray, classes: int, penalty: float) -> None:
        self.features, self.penalty = features, penalty
        self.targets = np.eye(classes)[labels]

    def of(self, weights: np.ndarray) -> np.ndarray:
        """The best x over several tolerances within which a class is at a margin."""
        margins = self.features @ weights - self.targets
        lead = margins.max(axis=1, keepdims=True) - margins
        size, best, least, seen = np.abs(margins).max(), self.targets, np.inf, None
        for tolerance in _TOLERANCES:
            support = lead <= tolerance * size
            if seen is not None and np.array_equal(support, seen):
                continue
            seen, found = support, self._on_face(support)
            error = self._error(found)
            if error < least:
                best, least = found, error
            if least <= 1e-12 * size:
                break
        return best

    def _margins(self, dual: np.ndarray) -> np.ndarray:
        return self.features @ (self.features.T @ (self.targets - dual)) / self.penalty - self.targets

    def _error(self, dual: np.ndarray) -> float:
        """The largest distance of a class in the support to its margin, weighted by its share."""
        margins = self._margins(dual)
        return float(np.max((margins.max(axis=1, keepdims=True) - margins) * dual))

    def _on_face(self, support: np.ndarray) -> np.ndarray:
        """x on the given support, cut to the simplices if the support is wrong."""
        dual = support / support.sum(axis=1, keepdims=True)
        rows, columns = np.nonzero(support & (support.sum(axis=1, keepdims=True) > 1))
        if len(rows):
            dual[rows, columns] += self._move(dual, rows, columns)
            dual = np.maximum(dual, 0)
            dual /= dual.sum(axis=1, keepdims=True)
        return dual

    def _move(self, dual: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The least change of the free coordinates that makes S − Y equal along each support, keeping the row sums."""
        free, number = np.unique(rows, return_inverse=True)
        features = self.features[free]
        gram = features @ features.T
        gram = (gram if isinstance(gram, np.ndarray) else gram.toarray()) / self.penalty
        same_class = columns[:, None] == columns[None, :]
        curvature = np.where(same_class, gram[np.ix_(number, number)], 0)
        member = (number[:, None] == np.arange(len(free))[None, :]).astype(float)
        matrix = np.block([[curvature, member], [member.T, np.zeros((len(free), len(free)))]])
        rest = np.concatenate([self._margins(dual)[rows, columns], np.zeros(len(free))])
        return np.linalg.lstsq(matrix, rest, rcond=1e-12)[0][: len(rows)]
