"""Task-driven dictionary learning against classifiers of the features and of unsupervised codes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bilevel import datasets, hypergrad, inner, outer
from bilevel.datasets import Table
from bilevel.study import Findings, Reporter, Row, Study
from bilevel.tasks import dictionary
from experiments import steps

METHODS = ("l1_logistic", "l2_logistic", "dictionary", "task_driven")
Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A fitted model: its settings, its scores of rows, the share of zeros among its codes of rows, and the number of solves that
    failed while it was fitted."""

    settings: Row
    scores: Transform
    zeros: Callable[[np.ndarray], float] | None = None
    failures: int = 0


@dataclasses.dataclass(frozen=True)
class _Part:
    """The rows to fit, standardized, and the rows to judge by; scaled so that the first codes have mean square 1."""

    train: Table
    judged: Table
    atoms: np.ndarray

    @classmethod
    def make(cls, train: Table, judged: Table, count: int) -> _Part:
        train, judged, _ = datasets.standardize(datasets.Split(train, judged, judged))
        atoms = dictionary.start(train.features, count)
        scale = float(np.sqrt(np.mean((train.features @ atoms.T) ** 2))) or 1.0
        train, judged = (datasets.part_with(part, part.features / scale) for part in (train, judged))
        return cls(train, judged, atoms)

    def auc(self, candidate: _Candidate) -> float:
        """On the rows to judge by."""
        return float(roc_auc_score(self.judged.targets, candidate.scores(self.judged.features)))


Descend = Callable[[_Part, float, float], Iterator[_Candidate]]  # of a part, for a share of zeros and an ℓ2 penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryLearning(Study):
    """Test AUC of four classifiers over random splits: two of the features, two of sparse codes.

    `l1_logistic` and `l2_logistic`: scikit-learn's logistic regression. `dictionary`: its dictionary learning, and its ℓ2
    logistic regression of the codes. `task_driven`: atoms and classifier chosen together by `tasks.Dictionary`'s bilevel
    problem, by Adam from the first right singular vectors. On each split, each method uses the settings with the best validation
    AUC; the model is then refitted on training and validation rows together. Features are standardized by the rows that a model
    is fitted on, and divided by one number so that the codes at the start have mean square 1.

    Args:
      data: `breast_cancer`, or a table by path, with two classes.
      splits: number of random splits, with the seeds seed, seed + 1, …
      validation, test: shares of the rows.
      atoms: number of atoms.
      inverse_penalties: scikit-learn's C to choose from, for `l1_logistic`, `l2_logistic` and `dictionary`.
      sparsities: shares of zero codes at the start to choose from, which set the ℓ1 penalty of the codes.
      l2_penalties: ℓ2 penalties of the codes to choose from, for `task_driven`.
      weight_penalty: ℓ2 penalty of its classifier.
      steps: outer steps of `task_driven`.
      check_every: every so many steps the model is a candidate; a divisor of `steps`.
      learning_rate: of Adam, for rows of θ that start with entries of mean square 1, since their lengths do not matter.

    Reference: Blondel et al. 2022, section 4.3.
    """

    data: str = "breast_cancer"
    splits: int = 10
    validation: float = 0.2
    test: float = 0.2
    atoms: int = 10
    inverse_penalties: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {
            "l1_logistic": [0.03, 0.1, 0.3, 1.0, 3.0],
            "l2_logistic": [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0],
            "dictionary": [0.01, 0.1, 1.0, 10.0],
        }
    )
    sparsities: list[float] = dataclasses.field(default_factory=lambda: [0.7, 0.5, 0.3])
    l2_penalties: list[float] = dataclasses.field(default_factory=lambda: [10.0, 1.0, 0.1])
    weight_penalty: float = 0.01
    steps: int = 100
    check_every: int = 20
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.splits < 2:
            raise ValueError(f"study.splits must be at least 2, for a standard error, got {self.splits}")
        if self.check_every < 1 or self.steps < 1 or self.steps % self.check_every:
            raise ValueError(
                f"study.steps must be a multiple of study.check_every, got {self.steps} and {self.check_every}"
            )
        if set(self.inverse_penalties) != set(METHODS[:3]):
            raise ValueError(
                f"study.inverse_penalties must name {', '.join(METHODS[:3])}, got {', '.join(self.inverse_penalties)}"
            )

    @property
    def count(self) -> int:
        return self.splits * len(METHODS)

    @property
    def title(self) -> str:
        return f"task-driven dictionary learning on {self.data}, {self.splits} splits"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """A row per split and method: settings, `validation_auc`, `test_auc`, and the share of zero codes on the test rows."""
        table = datasets.load_table(self.data, "classification")
        dictionary.require_two_classes(table)
        algorithm = outer.Nested(
            dictionary.problem, inner.FISTA(rtol=1e-5), hypergrad.Implicit(), optax.adam(self.learning_rate)
        )
        descend = functools.partial(self._descend, algorithm, dtype)
        rows = []
        for number in range(self.splits):
            for row in self._split(table, seed + number, descend):
                rows.append({**row, "split": number})
                report(rows[-1])
        aucs = {name: np.array([row["test_auc"] for row in rows if row["method"] == name]) for name in METHODS}
        zeros = {name: [row["zero_codes"] for row in rows if row["method"] == name] for name in METHODS[2:]}
        return Findings(
            {
                "test_auc": {name: _with_interval(values) for name, values in aucs.items()},
                "task_driven_over_dictionary": _with_interval(aucs["task_driven"] - aucs["dictionary"]),
                "zero_codes": {name: float(np.mean(values)) for name, values in zeros.items()},
                "failures": sum(row.get("failures", 0) for row in rows),
            },
            {"test_auc": aucs},
        )

    def _split(self, table: Table, seed: int, descend: Descend) -> Iterator[Row]:
        split = datasets.split_rows(table, self.validation, self.test, seed)
        first = _Part.make(split.train, split.validation, self.atoms)
        last = _Part.make(datasets.join(split.train, split.validation), split.test, self.atoms)
        for method in METHODS:
            candidates = list(self._candidates(method, first, descend))
            best = max(candidates, key=first.auc)
            refitted = list(self._candidates(method, last, descend, best.settings))
            final = next(candidate for candidate in refitted if candidate.settings == best.settings)
            row = {"method": method, **best.settings, "validation_auc": first.auc(best), "test_auc": last.auc(final)}
            if final.zeros is not None:
                row["zero_codes"] = final.zeros(last.judged.features)
            if method == "task_driven":
                row["failures"] = sum(candidate.failures for candidate in (*candidates, *refitted))
            yield row

    def _candidates(
        self, method: str, part: _Part, descend: Descend, settings: Row | None = None
    ) -> Iterator[_Candidate]:
        """The models of a method, the most regularized first: for all of its settings, or for those that `settings` names."""
        if method == "task_driven":
            for sparsity, l2 in _products(settings, sparsity=self.sparsities, l2=self.l2_penalties):
                yield from descend(part, sparsity, l2)
        elif method == "dictionary":
            for (sparsity,) in _products(settings, sparsity=self.sparsities):
                encode = _unsupervised(part, sparsity)
                codes = encode(part.train.features)
                for (c,) in _products(settings, C=self.inverse_penalties[method]):
                    classify = _logistic("l2", c, codes, part.train.targets)
                    yield _on_codes({"sparsity": sparsity, "C": c}, encode, classify)
        else:
            for (c,) in _products(settings, C=self.inverse_penalties[method]):
                yield _Candidate({"C": c}, _logistic(method[:2], c, part.train.features, part.train.targets))

    def _descend(
        self, algorithm: outer.Nested, dtype: str, part: _Part, sparsity: float, l2: float
    ) -> Iterator[_Candidate]:
        """The bilevel problem's model at every `check_every`-th step."""
        rows, features = part.train.features.shape
        l1 = dictionary.penalty_at(part.train.features, part.atoms, sparsity)
        data = dictionary.make_data(part.train, l1, l2, self.weight_penalty, dtype)
        hparams = dictionary.start_hparams(part.atoms * np.sqrt(features), dtype)
        state = algorithm.init(hparams, jnp.zeros((rows, len(part.atoms)), dtype), data)
        path, failures = jax.device_get(_path(algorithm, self.steps, state, data))
        for last in range(self.check_every - 1, self.steps, self.check_every):
            at = jax.tree.map(lambda x, last=last: np.asarray(x[last], np.float64), path)
            atoms = at["dictionary"] / np.linalg.norm(at["dictionary"], axis=1, keepdims=True)
            encode = functools.partial(dictionary.encode, dictionary=atoms, l1=l1, l2=l2, tol=1e-7)
            failed = int(failures[last + 1 - self.check_every : last + 1].sum())
            settings = {"sparsity": sparsity, "l2": l2, "steps": last + 1}
            yield _on_codes(settings, encode, lambda codes, at=at: codes @ at["weights"] + at["bias"], failed)


@functools.partial(jax.jit, static_argnames=("algorithm", "count"))
def _path(algorithm: outer.Nested, count: int, state: outer.NestedState, data: Any) -> tuple[Any, jax.Array]:
    """The hyperparameters after each step, and the number of solves that failed in it; compiled once per shape of the data."""

    def step(state: outer.NestedState, _: None) -> tuple[outer.NestedState, tuple[Any, jax.Array]]:
        following, report = algorithm.step(state, data)
        return following, (following.hparams, steps.failures(report))

    return jax.lax.scan(step, state, length=count)[1]


def _products(settings: Row | None, **choices: list[float]) -> Iterator[tuple[float, ...]]:
    """All combinations, or the one that the settings name."""
    if settings is not None:
        choices = {name: [settings[name]] for name in choices}
    return itertools.product(*choices.values())


def _on_codes(settings: Row, encode: Transform, classify: Transform, failures: int = 0) -> _Candidate:
    return _Candidate(
        settings,
        lambda features: classify(encode(features)),
        lambda features: float(np.mean(encode(features) == 0)),
        failures,
    )


def _unsupervised(part: _Part, sparsity: float) -> Transform:
    """scikit-learn's dictionary learning, in coordinates of the space of the rows, in which its atoms lie."""
    l1 = dictionary.penalty_at(part.train.features, part.atoms, sparsity)
    basis = np.linalg.svd(part.train.features, full_matrices=False)[2].T
    make: Any = decomposition.DictionaryLearning  # its stub wants a whole number for alpha
    model = make(
        n_components=len(part.atoms),
        alpha=l1,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        max_iter=100,
        random_state=0,
    )
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        model.fit(part.train.features @ basis)

    def encode(features: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            return np.asarray(model.transform(features @ basis))

    return encode


def _logistic(penalty: str, c: float, features: np.ndarray, targets: np.ndarray) -> Transform:
    solver = "liblinear" if penalty == "l1" else "lbfgs"
    with warnings.catch_warnings(action="ignore"):  # scikit-learn's releases name the penalty differently
        model = LogisticRegression(C=c, penalty=penalty, solver=solver, max_iter=2000, random_state=0)
        model.fit(features, targets)
    return model.decision_function


def _with_interval(values: np.ndarray) -> dict[str, float]:
    """Mean, and 1.96 standard errors."""
    return {"mean": float(values.mean()), "interval": float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))}
