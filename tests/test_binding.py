"""Which argument of a solver's call is which argument of its condition: by name, however the solver is called."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

P = 3
THETA = np.array([0.3, -0.7, 1.1])


def by_position(function):
    return functools.wraps(function)(lambda *args: function(*args))


def by_keyword(function):
    return functools.wraps(function)(lambda x, **kw: function(x, **kw))


class TestBinding:
    """Arguments of F are found by name, however the solver is called."""

    @staticmethod
    def check(solver, condition, call, **kwargs):
        with jax.enable_x64(True):
            decorated = bl.custom_root(condition, **kwargs)(solver)
            got = jax.jacrev(lambda theta, gain: call(decorated, theta, gain), argnums=(0, 1))(
                jnp.asarray(THETA), jnp.array(2.0)
            )
            expected = 2.0 * np.eye(P), THETA
            np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
            np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)

    @staticmethod
    def condition(x, theta, gain):
        return x - gain * theta

    @staticmethod
    def solve(init, theta, gain):
        return jax.lax.stop_gradient(gain * theta)

    def test_positional(self):
        self.check(self.solve, self.condition, lambda s, t, g: s(None, t, g))

    def test_keywords_in_any_order(self):
        self.check(self.solve, self.condition, lambda s, t, g: s(gain=g, init=None, theta=t))

    def test_kwargs_solver(self):
        def solver(init, **kw):
            return jax.lax.stop_gradient(kw["gain"] * kw["theta"])

        self.check(solver, self.condition, lambda s, t, g: s(None, gain=g, theta=t))

    def test_varargs_solver(self):
        def solver(*args):
            return jax.lax.stop_gradient(args[1] * args[2])

        self.check(solver, self.condition, lambda s, t, g: s(None, t, g))

    def test_other_order_of_parameters(self):
        def solver(init, gain, theta):
            return jax.lax.stop_gradient(gain * theta)

        self.check(solver, self.condition, lambda s, t, g: s(None, g, t))

    def test_other_names_by_position(self):
        def solver(init, t, g):
            return jax.lax.stop_gradient(g * t)

        self.check(solver, self.condition, lambda s, t, g: s(None, t, g))

    def test_keyword_only(self):
        def condition(x, *, theta, gain):
            return x - gain * theta

        def solver(init, *, theta, gain):
            return jax.lax.stop_gradient(gain * theta)

        self.check(solver, condition, lambda s, t, g: s(None, theta=t, gain=g))
        self.check(self.solve, condition, lambda s, t, g: s(None, t, g))

    def test_partial_condition_and_solver(self):
        def condition(x, offset, theta, gain):
            return x - gain * theta - offset

        def solver(init, theta, gain, offset=0.0):
            return jax.lax.stop_gradient(gain * theta + offset)

        bound = functools.partial(condition, offset=0.0)
        self.check(functools.partial(solver, None), bound, lambda s, t, g: s(t, gain=g))
        self.check(functools.partial(solver, offset=0.0), bound, lambda s, t, g: s(None, theta=t, gain=g))

    def test_defaults_of_the_solver_count(self):
        def solver(init, theta, gain, shift=1.0, verbose=False):
            return jax.lax.stop_gradient(gain * theta + shift - 1.0)

        def condition(x, theta, gain, shift=5.0):
            return x - gain * theta - (shift - 1.0)

        self.check(solver, condition, lambda s, t, g: s(None, t, g))

    def test_bound_methods_and_reference_signature(self):
        class Model:
            def condition(self, x, theta, gain):
                return x - gain * theta

        self.check(self.solve, Model().condition, lambda s, t, g: s(None, t, g))
        self.check(
            self.solve,
            lambda x, *args, **kw: self.condition(x, *args, **kw),
            lambda s, t, g: s(None, gain=g, theta=t),
            reference_signature=self.condition,
        )

    def test_a_wrapper_is_called_as_it_takes_its_arguments(self):
        def shifted(x, shift=0.0, theta=0.0, gain=1.0):
            return x - gain * theta - shift

        for condition in (self.condition, shifted):
            for wrapped in (by_position(condition), by_keyword(condition)):
                self.check(self.solve, wrapped, lambda s, t, g: s(None, t, gain=g))

    def test_a_fixed_point_map_that_is_wrapped_and_one_with_any_names(self):
        def heron(x, theta):
            return (x + theta / x) / 2

        def other_names(state, x):
            return heron(state, x)

        for fixed_point, keywords in ((by_position(heron), {"theta": 4.0}), (other_names, {"x": 4.0})):
            solver = bl.custom_fixed_point(fixed_point)(lambda init, **kw: jnp.sqrt(*kw.values()))
            slope = jax.grad(lambda kw, solver=solver: solver(None, **kw))(keywords)
            assert list(slope.values()) == pytest.approx([0.25])

    def test_an_unknown_argument_is_named(self):
        def solver(init, theta, gain, maxiter=3):
            return gain * theta

        decorated = bl.custom_root(self.condition)(solver)
        with pytest.raises(TypeError, match=r"argument 'maxiter' of the solver 'solver'.*parameters: theta, gain"):
            decorated(None, 1.0, 2.0, maxiter=5)
        with pytest.raises(TypeError, match="'speed'"):
            bl.custom_root(self.condition)(lambda init, **kw: kw["theta"])(None, theta=1.0, gain=1.0, speed=3)

    def test_a_missing_argument_is_named(self):
        with pytest.raises(TypeError, match=r"condition 'condition' needs 'gain'"):
            bl.custom_root(self.condition)(lambda init, theta: theta)(None, 1.0)

    def test_a_call_that_the_solver_refuses(self):
        with pytest.raises(TypeError, match="too many positional"):
            bl.custom_root(self.condition)(self.solve)(None, 1.0, 2.0, 3.0)
