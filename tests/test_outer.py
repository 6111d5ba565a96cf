"""The nested algorithm and its loop: right steps, nothing traced twice, no failure unseen."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import bilevel as bl
from bilevel.outer import SolveError

QUADRATIC = bl.inner.Quadratic()
DATA = jnp.array([2.0, 3.0])
ROW_KEYS = [
    "step",
    "outer_loss",
    "outer_error",
    "grad_norm",
    "verdict",
    "status",
    "update_norm",
    "error_estimate",
    "condition",
    "inner_residual",
    "adjoint_residual",
    "grad_evals",
    "hvps",
    "seconds",
]


def shrink(params, hparams, data):
    return jnp.sum((params - data) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)


def towards_one(params, hparams, data):
    return jnp.sum((params - 1.0) ** 2)


BEST = float(jnp.sum((DATA / (1 + 8 / 5) - 1) ** 2))
SHRINK = bl.Problem(shrink, towards_one)  # x* = data/(1 + e^h), optimal at e^h = 8/5


def minimize(problem=SHRINK, hparams=0.0, data=DATA, **kwargs):
    return bl.minimize(problem, hparams, jnp.zeros(2), data, **{"inner": QUADRATIC, "steps": 30, **kwargs})


def minimize_named(name, **kwargs):
    return bl.minimize(problems.ALL[name], problems.hparams(name), problems.start(), problems.data(), **kwargs)


def test_sgd_steps_are_those_of_the_closed_form(x64):
    """Three plain gradient steps on ridge, to the last digits."""
    theta = problems.hparams("ridge")

    def closed(theta):
        return problems.validation_loss(problems.ridge_solution(theta), theta, problems.data())

    expected, losses = theta, []
    for _ in range(3):
        losses.append(float(closed(expected)))
        expected = expected - 0.5 * jax.grad(closed)(expected)
    result = minimize_named("ridge", inner=QUADRATIC, optimizer=optax.sgd(0.5), steps=3)
    np.testing.assert_allclose(result.state.hparams, expected, rtol=1e-10)
    np.testing.assert_allclose([row["outer_loss"] for row in result.history], losses, rtol=1e-10)


def test_the_result_is_the_best_point_with_its_own_solution(x64):
    result = minimize(optimizer=optax.sgd(20.0), steps=8)  # overshoots
    losses = [row["outer_loss"] for row in result.history]
    assert result.best_step == int(np.argmin(losses)) != len(losses) - 1
    assert result.outer_loss == min(losses)
    np.testing.assert_allclose(result.params, DATA / (1 + np.exp(result.hparams)), rtol=1e-9)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.sgd(0.5, momentum=0.9),
        optax.lbfgs(),
        optax.rprop(0.1),
        optax.polyak_sgd(max_learning_rate=1.0, f_min=BEST),
    ],
    ids=["adam", "momentum", "lbfgs", "rprop", "polyak"],
)
def test_optax_optimizers_reach_the_optimum(x64, optimizer):
    """Those that search along lines get the value, the gradient and a differentiable value_fn."""
    result = minimize(optimizer=optimizer, steps=60)
    np.testing.assert_allclose(np.exp(result.hparams), 8 / 5, rtol=0.02)


def test_value_fn_is_differentiable_in_both_modes(x64):
    seen = {}

    def update(grads, state, params=None, *, value_fn, value, **_):
        seen["gap"] = jax.tree.map(lambda a, b: a - b, jax.grad(value_fn)(params), grads)
        seen["slope"] = jax.jvp(value_fn, (params,), (jnp.ones_like(params),))[1] - jnp.sum(grads)
        return jax.tree.map(lambda g: -0.0 * g, grads), state

    tx = optax.GradientTransformationExtraArgs(lambda p: (), update)
    algorithm = bl.outer.Nested(SHRINK, QUADRATIC, bl.hypergrad.Implicit(), tx)
    algorithm.step(algorithm.init(0.3, jnp.zeros(2), DATA), DATA)
    assert float(seen["gap"]) == 0.0
    assert abs(float(seen["slope"])) < 1e-12


def test_nothing_is_traced_again_after_the_first_step(x64):
    count = {"inner": 0, "outer": 0}

    def inner_loss(params, hparams, data):
        count["inner"] += 1
        return problems.logistic_loss(params, hparams, data)

    def outer_loss(params, hparams, data):
        count["outer"] += 1
        return problems.validation_loss(params, hparams, data)

    problem, after_first = bl.Problem(inner_loss, outer_loss), {}

    def callback(row, state):
        if row["step"] == 0:
            after_first.update(count)

    bl.minimize(problem, problems.hparams("logistic"), problems.start(), problems.data(), steps=10, callback=callback)
    assert after_first["inner"] > 0
    assert count == after_first


def test_data_and_hyperparameters_are_not_compiled_in(x64):
    """No constant of the data's size in the program of a step."""
    algorithm = bl.outer.Nested(problems.logistic, bl.inner.LBFGS(), bl.hypergrad.Implicit(), optax.adam(0.1))
    state = algorithm.init(problems.hparams("logistic"), problems.start(), problems.data())
    program = jax.jit(algorithm.step).lower(state, problems.data()).as_text()
    sizes = [
        int(np.prod([int(n) for n in dims.split("x")[:-1]]))
        for dims in re.findall(r"stablehlo.constant dense<\"[^>]*>\s*:\s*tensor<([\dx]+x\w+)>", program)
    ]
    assert max(sizes, default=0) < problems.FEATURES.size


def test_pytree_hparams_with_an_integer_leaf(x64):
    def inner_loss(params, hparams, data):
        return jnp.sum((params - data) ** 2) + jnp.exp(hparams["log"][0]) * jnp.sum(params ** hparams["power"])

    result = minimize(bl.Problem(inner_loss, towards_one), {"log": [0.0], "power": 2}, steps=80, inner=bl.inner.LBFGS())
    np.testing.assert_allclose(np.exp(result.hparams["log"][0]), 8 / 5, rtol=0.02)
    assert int(result.hparams["power"]) == 2


def test_defaults_serve_smooth_and_constrained_problems(x64):
    for name in ("ridge", "simplex"):
        result = minimize_named(name, steps=5)
        assert result.failures == 0
        assert result.history[-1]["outer_loss"] < result.history[0]["outer_loss"]


def test_warm_starts_lower_the_cost(x64):
    hypergrad = bl.hypergrad.Implicit(linear=bl.linear.CG(rtol=1e-6))
    result = minimize_named("logistic", hypergrad=hypergrad, optimizer=optax.adam(1e-4), steps=4)
    first, last = result.history[0], result.history[-1]
    assert last["grad_evals"] < first["grad_evals"]
    assert last["hvps"] < first["hvps"]


class TestFailurePolicy:
    def run(self, **kwargs):
        return minimize_named("ridge", inner=bl.inner.FISTA(max_steps=2), steps=4, **kwargs)

    def test_raise_names_step_solve_and_cause(self, x64):
        with pytest.raises(
            SolveError, match=r"outer step 0: the inner solve did not converge.*max_steps: .*raise max_steps"
        ):
            self.run(on_failure="raise")

    def test_warn_says_so_once_and_goes_on(self, x64, caplog):
        with caplog.at_level(logging.WARNING, logger="bilevel"):
            result = self.run(on_failure="warn")
        assert len(caplog.records) == 1
        assert "Further failures are counted" in caplog.text
        assert result.failures == 4
        assert {row["status"] for row in result.history} == {"inner max_steps"}
        assert not np.array_equal(result.state.hparams, problems.hparams("ridge"))

    def test_skip_keeps_hparams_and_goes_on_from_where_the_solve_stopped(self, x64):
        result = self.run(on_failure="skip")
        np.testing.assert_array_equal(result.state.hparams, problems.hparams("ridge"))
        residuals = [row["inner_residual"] for row in result.history]
        assert residuals[-1] < residuals[0]

    def test_a_failed_adjoint_is_told_apart(self, x64):
        crippled = bl.hypergrad.Implicit(linear=bl.linear.CG(max_steps=1, rtol=1e-10))
        with pytest.raises(SolveError, match="the adjoint solve did not converge"):
            minimize_named("ridge", inner=QUADRATIC, hypergrad=crippled, on_failure="raise")

    def test_a_gradient_that_is_not_finite_is_never_applied(self, x64):
        problem = bl.Problem(shrink, lambda p, h, d: jnp.sum(p) + jnp.log(h - 5.0))
        result = minimize(problem, 0.5)
        assert result.status == "non_finite"
        assert result.steps == 1
        assert float(result.state.hparams) == 0.5
        with pytest.raises(SolveError, match="hypergradient is not finite though no solve failed"):
            minimize(problem, 0.5, on_failure="raise")

    def test_a_solution_too_rough_for_the_outer_loss_is_told(self, x64, caplog):
        """Both solves converge, to tolerances that leave the hypergradient uncertain."""
        with caplog.at_level(logging.WARNING, logger="bilevel"):
            result = minimize_named("ridge", inner=bl.inner.FISTA(rtol=0.3), steps=1)
        assert result.history[0]["status"] == "converged"
        assert (result.failures, result.verdicts) == (1, {"failed": 1})
        assert "off by an estimated" in caplog.text


def test_stop_rules(x64):
    assert minimize(steps=200, gtol=1e-3).status == "converged"
    assert minimize(steps=200, optimizer=optax.sgd(20.0), patience=3).status == "patience"
    assert minimize(steps=10_000, time_limit=0.05).status == "time_limit"
    result = minimize(callback=lambda row, state: row["step"] == 2)
    assert (result.status, result.steps) == ("callback", 3)
    assert minimize(steps=2).status == "completed"


def test_rows_have_the_documented_keys(x64):
    rows = []
    minimize(steps=2, callback=lambda row, state: rows.append(row))
    assert [list(row) for row in rows] == [ROW_KEYS] * 2
    assert [row["step"] for row in rows] == [0, 1]


def with_condition(problem, optimality):
    return dataclasses.replace(problem, optimality=optimality)


REFUSED_BEFORE_TRACING = (
    (ValueError, "Problem.outer_loss must return a scalar, got float32[2]", bl.Problem(shrink, lambda p, h, d: p), {}),
    (ValueError, "hparams must start finite", SHRINK, {"hparams": jnp.nan}),
    (TypeError, "hparams has no floating-point leaf", SHRINK, {"hparams": 1}),
    (ValueError, "inner.LBFGS needs a smooth unconstrained inner", problems.simplex, {"inner": bl.inner.LBFGS()}),
    (
        ValueError,
        "optimality.ProximalGradient needs a prox, and this one has no Problem.prox",
        with_condition(SHRINK, bl.optimality.ProximalGradient()),
        {},
    ),
    (
        ValueError,
        "optimality.Stationary needs a smooth",
        with_condition(problems.simplex, bl.optimality.Stationary()),
        {"inner": bl.inner.FISTA()},
    ),
    (
        ValueError,
        "value of Problem.optimality must have the structure and shapes of params",
        with_condition(SHRINK, lambda p, h, d: p[:1]),
        {},
    ),
    (ValueError, "on_failure must be 'raise', 'skip' or 'warn', got 'nan'", SHRINK, {"on_failure": "nan"}),
    (ValueError, "steps must be at least 1", SHRINK, {"steps": 0}),
)


def test_what_cannot_be_run_is_refused_before_tracing():
    for error, words, problem, settings in REFUSED_BEFORE_TRACING:
        with pytest.raises(error, match=re.escape(words)):
            minimize(problem, **settings)
    with pytest.raises(TypeError, match="params has no floating-point leaf"):
        bl.minimize(SHRINK, 0.0, jnp.arange(2), DATA)


def test_problem_parts_must_agree():
    for words, parts in (
        ("a prox or a projection, not both", {"prox": shrink, "projection": shrink}),
        ("polyhedral=True describes a projection", {"polyhedral": True}),
        ("separable=True describes a prox", {"separable": True}),
    ):
        with pytest.raises(ValueError, match=words):
            bl.Problem(shrink, shrink, **parts)
    with pytest.raises(TypeError, match="outer_loss must be a function"):
        bl.Problem(shrink, 3)


def test_from_optax_names_what_is_wrong():
    assert isinstance(bl.outer.from_optax("lion", 0.01, {"b1": 0.8}), optax.GradientTransformation)
    with pytest.raises(ValueError, match="no such optimizer; did you mean adam"):
        bl.outer.from_optax("adamm")
    with pytest.raises(ValueError, match=r"options\.beta: optax\.adam takes learning_rate, b1"):
        bl.outer.from_optax("adam", options={"beta": 1})


@pytest.mark.parametrize("asked", [None, "default"])
def test_products_are_in_full_precision_unless_the_user_chose(asked):
    """On a GPU the default rounds float32 factors to 10 bits."""
    algorithm = bl.outer.Nested(problems.ridge, bl.inner.FISTA(), bl.hypergrad.Implicit(), optax.sgd(0.1))
    data = problems.data("float32")
    state = algorithm.init(problems.hparams("ridge", "float32"), problems.start("float32"), data)
    with jax.default_matmul_precision(asked):
        text = str(jax.make_jaxpr(algorithm.step)(state, data))
    assert "dot_general" in text
    assert ("HIGHEST" in text) == (asked is None)
