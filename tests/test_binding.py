"""Which argument of a solver's call is which argument of its condition: by name, however the solver is called."""

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


stop = jax.lax.stop_gradient


def condition(x, theta, gain):
    return x - gain * theta


def solve(init, theta, gain):
    return stop(gain * theta)


def with_offset(x, offset, theta, gain):
    return x - gain * theta - offset


def shifted(x, shift=0.0, theta=0.0, gain=1.0):
    return x - gain * theta - shift


def keyword_only(x, *, theta, gain):
    return x - gain * theta


class Model:
    def condition(self, x, theta, gain):
        return x - gain * theta


CALLS = {
    "by position": (solve, condition, lambda s, t, g: s(None, t, g)),
    "keywords in any order": (solve, condition, lambda s, t, g: s(gain=g, init=None, theta=t)),
    "a solver of any keywords": (
        lambda init, **kw: stop(kw["gain"] * kw["theta"]),
        condition,
        lambda s, t, g: s(None, gain=g, theta=t),
    ),
    "a solver of any arguments": (lambda *args: stop(args[1] * args[2]), condition, lambda s, t, g: s(None, t, g)),
    "another order": (lambda init, gain, theta: stop(gain * theta), condition, lambda s, t, g: s(None, g, t)),
    "other names": (lambda init, t, g: stop(g * t), condition, lambda s, t, g: s(None, t, g)),
    "keywords only": (
        lambda init, *, theta, gain: stop(gain * theta),
        keyword_only,
        lambda s, t, g: s(None, theta=t, gain=g),
    ),
    "a condition of keywords only": (solve, keyword_only, lambda s, t, g: s(None, t, g)),
    "a partial solver": (
        functools.partial(lambda init, theta, gain, offset=0.0: stop(gain * theta + offset), None),
        functools.partial(with_offset, offset=0.0),
        lambda s, t, g: s(t, gain=g),
    ),
    "a partial solver, by keyword": (
        functools.partial(lambda init, theta, gain, offset: stop(gain * theta + offset), offset=0.0),
        functools.partial(with_offset, offset=0.0),
        lambda s, t, g: s(None, theta=t, gain=g),
    ),
    "defaults of the solver": (
        lambda init, theta, gain, shift=1.0, verbose=False: stop(gain * theta + shift - 1.0),
        lambda x, theta, gain, shift=5.0: x - gain * theta - (shift - 1.0),
        lambda s, t, g: s(None, t, g),
    ),
    "a bound method": (solve, Model().condition, lambda s, t, g: s(None, t, g)),
    **{
        f"{wrapper.__name__}, {wrapped.__name__}": (solve, wrapper(wrapped), lambda s, t, g: s(None, t, gain=g))
        for wrapper in (by_position, by_keyword)
        for wrapped in (condition, shifted)
    },
}


def check(solver, condition, call, **settings):
    with jax.enable_x64(True):
        decorated = bl.custom_root(condition, **settings)(solver)
        got = jax.jacrev(functools.partial(call, decorated), argnums=(0, 1))(jnp.asarray(THETA), jnp.array(2.0))
        np.testing.assert_allclose(got[0], 2.0 * np.eye(P), rtol=1e-12)
        np.testing.assert_allclose(got[1], THETA, rtol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_the_condition_are_found_by_name(name):
    check(*CALLS[name])


def test_a_reference_signature():
    check(
        solve,
        lambda x, *args, **kw: condition(x, *args, **kw),
        lambda s, t, g: s(None, gain=g, theta=t),
        reference_signature=condition,
    )


def test_a_fixed_point_map_that_is_wrapped_and_one_with_any_names():
    def heron(x, theta):
        return (x + theta / x) / 2

    def other_names(state, x):
        return heron(state, x)

    for fixed_point, keywords in ((by_position(heron), {"theta": 4.0}), (other_names, {"x": 4.0})):
        solver = bl.custom_fixed_point(fixed_point)(lambda init, **kw: jnp.sqrt(*kw.values()))
        slope = jax.grad(lambda kw, solver=solver: solver(None, **kw))(keywords)
        assert list(slope.values()) == pytest.approx([0.25])


def test_a_call_that_does_not_fit_is_refused_by_name():
    def solver(init, theta, gain, maxiter=3):
        return gain * theta

    decorated = bl.custom_root(condition)(solver)
    with pytest.raises(TypeError, match=r"argument 'maxiter' of the solver 'solver'.*parameters: theta, gain"):
        decorated(None, 1.0, 2.0, maxiter=5)
    with pytest.raises(TypeError, match="'speed'"):
        bl.custom_root(condition)(lambda init, **kw: kw["theta"])(None, theta=1.0, gain=1.0, speed=3)
    with pytest.raises(TypeError, match=r"condition 'condition' needs 'gain'"):
        bl.custom_root(condition)(lambda init, theta: theta)(None, 1.0)
    with pytest.raises(TypeError, match="too many positional"):
        bl.custom_root(condition)(solve)(None, 1.0, 2.0, 3.0)
