"""Algorithms and estimators written outside of the package, as a user writes them, run by the loop unchanged."""

import dataclasses
import logging
import math
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.hypergrad import Estimator, Hypergradient, Solve
from bilevel.outer import Point, Progress, Report, run_loop
from bilevel.runs.checkpoints import Checkpoints

# A stochastic single-loop algorithm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SOBAState:
    hparams: Any
    params: Any
    adjoint: Any
    step: Any
    key: Any


@dataclasses.dataclass(frozen=True)
class SOBA:
    """params, adjoint and hparams move together along minibatch directions (Dagréou et al. 2022)."""

    problem: bl.Problem
    size: int
    rate: float
    outer_rate: float

    def init(self, hparams, params, data, key=None):
        key = jax.random.key_data(jax.random.key(0) if key is None else key)
        return SOBAState(hparams, params, jnp.zeros_like(params), jnp.int32(0), key)

    def step(self, state, data):
        batches, key = self.problem.batches, jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        some = data
        for level in ("inner", "outer"):
            rows = batches.rows(data, level)
            some = batches.take(some, level, jax.random.choice(key, rows, (self.size,), replace=False))
        at = bl.At(self.problem, state.hparams, some)
        value, (pull, direct) = jax.value_and_grad(lambda x, h: at.replace(hparams=h).outer_loss(x), argnums=(0, 1))(
            state.params, state.hparams
        )
        gradient, hvp = jax.linearize(at.gradient, state.params)
        _, cross = jax.vjp(lambda h: at.replace(hparams=h).gradient(state.params), state.hparams)
        hypergradient = direct - cross(state.adjoint)[0]
        rate = 1 / (1 + state.step / 300)
        following = SOBAState(
            hparams=state.hparams - self.outer_rate * rate * hypergradient,
            params=state.params - self.rate * rate * gradient,
            adjoint=state.adjoint - self.rate * rate * (hvp(state.adjoint) - pull),
            step=state.step + 1,
            key=state.key,
        )
        return following, Report(value, jnp.linalg.norm(hypergradient), counts={"hvps": jnp.int32(2)}, exact=False)

    def point(self, new, old):
        return Point(old.hparams, old.params)

    def hold(self, new, old):
        return dataclasses.replace(new, hparams=old.hparams)


def ridge_problem():
    def inner_loss(x, h, data):
        features, y = data["train"]
        return jnp.mean((features @ x - y) ** 2) / 2 + jnp.exp(h) * jnp.vdot(x, x) / 2

    def outer_loss(x, h, data):
        features, y = data["validation"]
        return jnp.mean((features @ x - y) ** 2) / 2

    return bl.Problem(inner_loss, outer_loss, batches=bl.Batches("train", "validation"))


def rows_of(seed, rows, features=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    return jnp.asarray(x), jnp.asarray(x @ np.linspace(1, 2, features) + 2 * rng.normal(size=rows))


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return {"train": rows_of(0, 40), "validation": rows_of(1, 60)}


def soba(size=20):
    return SOBA(ridge_problem(), size, 0.2, 0.2)


@pytest.mark.usefixtures("x64")
class TestASingleLoopAlgorithm:
    def test_reaches_what_the_nested_one_does(self, data):
        start = jnp.zeros(()), jnp.zeros(5)
        nested = bl.minimize(ridge_problem(), *start, data, steps=150)
        algorithm = soba()
        found = run_loop(algorithm, algorithm.init(*start, data), data, steps=3000)
        assert found.status == "completed"
        assert found.failures == 0
        assert found.best_step == 2999  # the loss of a minibatch chooses nothing
        assert float(found.hparams) == pytest.approx(float(nested.hparams), abs=0.25)
        assert list(found.history[0]) == [
            "step",
            "outer_loss",
            "outer_error",
            "grad_norm",
            "verdict",
            "status",
            "hvps",
            "seconds",
        ]
        assert found.history[0]["status"] == "intended"

    def test_is_resumed_from_a_checkpoint_to_the_same_bits(self, data, tmp_path):
        algorithm = soba()
        state = algorithm.init(jnp.zeros(()), jnp.zeros(5), data)
        whole = run_loop(algorithm, state, data, steps=20)
        store = Checkpoints(tmp_path, 1, None, {"configuration": "a", "set of data": "b"})
        fields = [field.name for field in dataclasses.fields(Progress) if field.name != "history"]

        def keep(progress, status):
            store.save(progress.steps, {name: getattr(progress, name) for name in fields})
            return "interrupted" if progress.steps == 7 else None

        cut = run_loop(algorithm, state, data, steps=20, keep=keep)
        assert (cut.status, cut.steps) == ("interrupted", 7)
        start = Progress.start(algorithm, state)
        step, tree = store.restore({name: getattr(start, name) for name in fields}, 7)
        resumed = run_loop(algorithm, state, data, steps=20, progress=Progress(**tree, history=cut.history[:step]))
        assert float(resumed.hparams) == float(whole.hparams)
        losses = [[row["outer_loss"] for row in run.history] for run in (resumed, whole)]
        assert losses[0] == losses[1]


# Estimators


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverFolds(Estimator):
    """The mean of an estimator over a leading axis of data."""

    each: Estimator = dataclasses.field(default_factory=bl.hypergrad.Implicit)

    def check_arrays(self, at, params):
        self.each.check_arrays(at.replace(data=jax.tree.map(lambda a: a[0], at.data)), params[0])

    def prepare(self, at, inner):
        return jax.vmap(lambda fold: self.each.prepare(at.replace(data=fold), inner))(at.data)

    def init(self, at, params):
        return jax.vmap(lambda fold, x: self.each.init(at.replace(data=fold), x))(at.data, params)

    def estimate(self, at, inner, params, carry, key):
        def fold(data, prepared, x, carry):
            return self.each.estimate(at.replace(data=data, prepared=prepared), inner, x, carry, key)

        found = jax.vmap(fold)(at.data, at.prepared, params, carry)
        mean = jax.tree.map(lambda a: jnp.mean(a, 0), (found.grad, found.outer_loss, found.outer_error))
        worst = jax.tree.map(lambda a: jnp.max(a, 0), (found.solves, found.counts))
        return Hypergradient(*mean, found.params, found.carry, *worst)


def test_folds_are_a_mean_of_hypergradients(x64):
    problem = ridge_problem()
    folds = [{"train": rows_of(k, 30), "validation": rows_of(k + 10, 20)} for k in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *folds)
    inner, plain = bl.inner.LBFGS(rtol=1e-12), bl.hypergrad.Implicit()
    one = [plain.run(problem, inner, jnp.zeros(5), jnp.array(0.5), fold) for fold in folds]
    algorithm = bl.outer.Nested(problem, inner, OverFolds(), optax.adam(0.1))
    state = algorithm.init(jnp.array(0.5), jnp.zeros((3, 5)), stacked)
    _, report = jax.jit(algorithm.step)(state, stacked)
    np.testing.assert_allclose(report.grad_norm, abs(np.mean([found.grad for found in one])), rtol=1e-9)
    np.testing.assert_allclose(report.outer_loss, np.mean([found.outer_loss for found in one]), rtol=1e-12)
    result = run_loop(algorithm, state, stacked, steps=5)
    assert result.failures == 0
    assert result.history[-1]["outer_loss"] < result.history[0]["outer_loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstSteps(Estimator):
    """Gradient steps from params, differentiated; stopped where its settings say."""

    steps: int = 30

    def estimate(self, at, inner, params, carry, key):
        def run(h):
            at_h = at.replace(hparams=h)
            x = params
            for _ in range(self.steps):
                x = x - 0.2 * at_h.gradient(x)
            return at_h.outer_loss(x), x

        (value, x), grad = jax.value_and_grad(run, has_aux=True)(at.hparams)
        solves = OrderedDict(inner=Solve(jnp.int32(bl.Status.MAX_STEPS), jnp.array(jnp.nan), intended=True))
        nothing = jnp.array(jnp.nan, value.dtype)
        return Hypergradient(
            grad, value, nothing, x, carry, solves, {"grad_evals": jnp.int32(self.steps)}, approximate=True
        )


def test_a_truncated_estimator_has_no_failures(x64, data):
    """`gtol` ends the run, and `skip` moves, although no solve ever converges."""
    result = bl.minimize(
        ridge_problem(),
        jnp.array(0.0),
        jnp.zeros(5),
        data,
        hypergrad=FirstSteps(),
        on_failure="skip",
        gtol=1e-3,
        steps=300,
    )
    assert (result.status, result.failures) == ("converged", 0)
    assert {row["status"] for row in result.history} == {"intended"}
    assert float(result.hparams) != 0
    assert result.best_step == min(result.history, key=lambda row: row["outer_loss"])["step"]


# What the loop makes of reports


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Reports what it is told."""

    losses: tuple[float, ...]
    errors: tuple[float, ...]
    failed: tuple[bool, ...]
    grad_norm: float = 1.0

    def init(self, hparams=None, params=None, data=None, key=None):
        return jnp.int32(0)

    def step(self, state, data):
        status = jnp.where(jnp.array(self.failed)[state], bl.Status.STAGNATED, bl.Status.CONVERGED)
        solve = Solve(status.astype(jnp.int32), jnp.array(0.0))
        report = Report(
            jnp.array(self.losses)[state], jnp.array(self.grad_norm), jnp.array(self.errors)[state], {"inner": solve}
        )
        return state + 1, report

    def point(self, new, old):
        return Point(old, new)

    def hold(self, new, old):
        return new


@pytest.mark.parametrize(
    ("errors", "failed", "best"),
    [
        ((0.0, 0.0, 0.0), (False, False, False), 2),
        ((0.0, 0.0, 1e-6), (False, False, True), 2),  # failed by a hair: its error is known, and small
        ((0.0, 0.0, 0.9), (False, False, True), 1),  # an error that could hide a worse loss
        ((0.0, 0.0, 0.9), (False, False, False), 1),  # also where the solve met its tolerance
        ((0.0, 0.0, math.nan), (False, False, True), 1),  # failed, and nobody knows by how much
        ((math.nan, math.nan, math.nan), (False, False, False), 2),
        ((math.nan, math.nan, math.nan), (True, True, True), 2),
    ],
)
def test_the_best_step_is_chosen_by_its_loss_and_its_error(errors, failed, best):
    algorithm = Scripted((0.5, 0.4, 0.1), errors, failed)
    result = run_loop(algorithm, algorithm.init(), None, steps=3)
    assert (result.best_step, int(result.hparams)) == (best, best)
    assert result.outer_loss == pytest.approx((0.5, 0.4, 0.1)[best])


def test_a_hypergradient_of_zero_is_told_and_ends_nothing(caplog):
    algorithm = Scripted((1.0, 1.0, 1.0), (0.0,) * 3, (False,) * 3, grad_norm=0.0)
    with caplog.at_level(logging.WARNING, logger="bilevel"):
        result = run_loop(algorithm, algorithm.init(), None, steps=3)
    assert (result.status, result.steps) == ("completed", 3)
    assert "hypergradient is exactly zero" in caplog.text


def test_equal_algorithms_are_compiled_once():
    """Also where every part is made anew, with functions of its own."""
    import jax.monitoring

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )

    def minimize(scale):
        def loss(x, h, data):
            return jnp.sum((x - data) ** 2) + scale * jnp.exp(h) * jnp.sum(x**2)

        problem = bl.Problem(loss, lambda x, h, data: jnp.sum((x - 1.0) ** 2))
        return bl.minimize(
            problem, jnp.array(0.0), jnp.zeros(2), jnp.array([2.0, 3.0]), optimizer=optax.adam(0.1), steps=3
        )

    first = minimize(1.0)
    before = len(compilations)
    assert float(minimize(1.0).hparams) == float(first.hparams)
    assert len(compilations) == before
    assert float(minimize(2.0).hparams) != float(first.hparams)  # another number in the closure: another program
    assert len(compilations) > before
