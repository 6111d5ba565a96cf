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

from bilevel import datasets, hypergrad, inner, outer
from bilevel._status import Status
from bilevel.datasets import Table
from bilevel.studies._base import Findings, Report, Row, Study
from bilevel.tasks import dictionary
from bilevel.tasks.scores import auc

METHODS = ("l1_logistic", "l2_logistic", "dictionary", "task_driven")


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A fitted model: the settings that made it, its scores of rows, the share of zeros among its codes of rows, and the solves
    on the way to it that failed."""

    settings: Row
    scores: Callable[[np.ndarray], np.ndarray]
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
        return auc(self.judged.targets, candidate.scores(self.judged.features))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryLearning(Study):
    """Test AUC of four classifiers over random splits: two of the features, two of sparse codes.

    `l1_logistic` and `l2_logistic`: scikit-learn's logistic regression. `dictionary`: its dictionary learning, and its ℓ2
    logistic regression of the codes. `task_driven`: atoms and classifier chosen together by `tasks.Dictionary`'s bilevel
    problem, by Adam from the first right singular vectors. Of each split, the settings of each method are those with the best
    validation AUC; the model is then fitted anew on training and validation rows together. Features are standardized by the
    rows that a model is fitted on, and divided by one number, by which the codes at the start have mean square 1.

    Args:
      data: `breast_cancer`, or a table by path, with two classes.
      splits: random splits, by the seeds seed, seed + 1, …
      validation, test: shares of the rows.
      atoms: number of atoms.
      inverse_penalties: scikit-learn's C to choose from, for `l1_logistic`, `l2_logistic` and `dictionary`.
      sparsities: shares of zero codes at the start to choose from, which set the ℓ1 penalty of the codes.
      l2_penalties: ℓ2 penalties of the codes to choose from, of `task_driven`.
      weight_penalty: ℓ2 penalty of its classifier.
      steps: its outer steps; every `check_every` of them is a candidate too.
      check_every: a divisor of steps.
      learning_rate: of Adam, on rows of θ that start with entries of mean square 1, since their lengths do not matter.

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

    def __post_init__(self):
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
    def count(self):
        """A row per split and method."""
        return self.splits * len(METHODS)

    @property
    def title(self):
        """What is measured."""
        return f"task-driven dictionary learning on {self.data}, {self.splits} splits"

    def run(self, seed, dtype, report):
        """A row per split and method: settings, `validation_auc`, `test_auc`, and the share of zero codes on the test rows."""
        table = datasets.load_table(self.data, "classification")
        dictionary.require_two_classes(table)
        descent = _Descent.make(self, dtype)
        rows = [
            row for number in range(self.splits) for row in self._split(table, seed + number, number, descent, report)
        ]
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

    def _split(self, table: Table, seed: int, number: int, descent: _Descent, report: Report) -> Iterator[Row]:
        split = datasets.split_rows(table, self.validation, self.test, seed)
        first = _Part.make(split.train, split.validation, self.atoms)
        last = _Part.make(datasets.join(split.train, split.validation), split.test, self.atoms)
        for method in METHODS:
            candidates = list(self._candidates(method, first, descent))
            best = max(candidates, key=first.auc)
            (final,) = self._candidates(method, last, descent, best.settings)
            row = {"method": method, "split": number, **best.settings, "validation_auc": first.auc(best)}
            row["test_auc"] = last.auc(final)
            if final.zeros is not None:
                row["zero_codes"] = final.zeros(last.judged.features)
            if method == "task_driven":
                row["failures"] = sum(candidate.failures for candidate in (*candidates, final))
            report(row)
            yield row

    def _candidates(
        self, method: str, part: _Part, descent: _Descent, settings: Row | None = None
    ) -> Iterator[_Candidate]:
        """The models of a method, one for each of its settings, or for these settings alone; the most regularized first."""
        if method == "task_driven":
            for sparsity, l2 in _products(settings, sparsity=self.sparsities, l2=self.l2_penalties):
                found = list(descent.run(part, sparsity, l2))
                if settings is not None:
                    failures = sum(candidate.failures for candidate in found)
                    chosen = next(candidate for candidate in found if candidate.settings["steps"] == settings["steps"])
                    found = [dataclasses.replace(chosen, failures=failures)]
                yield from found
        elif method == "dictionary":
            for (sparsity,) in _products(settings, sparsity=self.sparsities):
                encode = _unsupervised(part, sparsity)
                codes = encode(part.train.features)
                for (c,) in _products(settings, C=self.inverse_penalties[method]):
                    yield _on_codes(
                        {"sparsity": sparsity, "C": c}, encode, _logistic("l2", c, codes, part.train.targets)
                    )
        else:
            for (c,) in _products(settings, C=self.inverse_penalties[method]):
                scores = _logistic(method[:2], c, part.train.features, part.train.targets)
                yield _Candidate({"C": c}, scores)


@dataclasses.dataclass(frozen=True)
class _Descent:
    """The bilevel problem's descent, compiled once for each number of rows."""

    study: DictionaryLearning
    algorithm: outer.Nested
    descend: Callable[..., Any]
    dtype: Any

    @classmethod
    def make(cls, study: DictionaryLearning, dtype: Any) -> _Descent:
        algorithm = outer.Nested(
            dictionary.problem, inner.FISTA(rtol=1e-5), hypergrad.Implicit(), optax.adam(study.learning_rate)
        )

        @jax.jit
        def descend(state, data):
            def check(state, _):
                state, statuses = jax.lax.scan(step, state, length=study.check_every)
                return state, (state.hparams, jnp.sum(statuses))

            def step(state, _):
                state, metrics = algorithm.step(state, data)
                good = (metrics["inner_status"] == Status.CONVERGED) & (metrics["adjoint_status"] == Status.CONVERGED)
                return state, ~good

            return jax.lax.scan(check, state, length=study.steps // study.check_every)[1]

        return cls(study, algorithm, descend, dtype)

    def run(self, part: _Part, sparsity: float, l2: float) -> Iterator[_Candidate]:
        """The model at every `check_every`-th step."""
        study, (rows, features) = self.study, part.train.features.shape
        l1 = dictionary.penalty_at(part.train.features, part.atoms, sparsity)
        data = dictionary.make_data(part.train, l1, l2, study.weight_penalty, self.dtype)
        hparams = dictionary.start_hparams(part.atoms * np.sqrt(features), self.dtype)
        state = self.algorithm.init(hparams, jnp.zeros((rows, len(part.atoms)), self.dtype), data)
        path, failures = jax.device_get(self.descend(state, data))
        for number, failed in enumerate(failures):
            at = jax.tree.map(lambda x, number=number: np.asarray(x[number], np.float64), path)
            rows = at["dictionary"] / np.linalg.norm(at["dictionary"], axis=1, keepdims=True)
            encode = functools.partial(dictionary.encode, dictionary=rows, l1=l1, l2=l2, tol=1e-7)
            settings = {"sparsity": sparsity, "l2": l2, "steps": (number + 1) * study.check_every}
            yield _on_codes(settings, encode, lambda codes, at=at: codes @ at["weights"] + at["bias"], int(failed))


def _products(settings: Row | None, **choices: list[float]) -> Iterator[tuple[float, ...]]:
    """All combinations, or the one that the settings name."""
    if settings is not None:
        choices = {name: [settings[name]] for name in choices}
    return itertools.product(*choices.values())


def _on_codes(settings: Row, encode: Any, classify: Any, failures: int = 0) -> _Candidate:
    return _Candidate(
        settings,
        lambda features: classify(encode(features)),
        lambda features: float(np.mean(encode(features) == 0)),
        failures,
    )


def _unsupervised(part: _Part, sparsity: float) -> Callable[[np.ndarray], np.ndarray]:
    """scikit-learn's dictionary learning, in coordinates of the space of the rows, in which its atoms lie."""
    from sklearn.decomposition import DictionaryLearning as Unsupervised
    from sklearn.exceptions import ConvergenceWarning

    l1 = dictionary.penalty_at(part.train.features, part.atoms, sparsity)
    basis = np.linalg.svd(part.train.features, full_matrices=False)[2].T
    make: Any = Unsupervised  # its stub wants a whole number for alpha
    model = make(
        n_components=len(part.atoms),
        alpha=l1,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        max_iter=100,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(part.train.features @ basis)

    def encode(features):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return np.asarray(model.transform(features @ basis))

    return encode


def _logistic(penalty: str, c: float, features: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    solver = "liblinear" if penalty == "l1" else "lbfgs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the way to name a penalty, which depends on the release
        model = LogisticRegression(C=c, penalty=penalty, solver=solver, max_iter=2000, random_state=0)
        model.fit(features, targets)
    return model.decision_function


def _with_interval(values: np.ndarray) -> dict[str, float]:
    """Mean, and 1.96 standard errors."""
    return {"mean": float(values.mean()), "interval": float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))}
