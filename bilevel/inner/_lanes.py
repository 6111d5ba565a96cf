"""The loop of a solve. Under `vmap` it drops lanes that have ended, so that one hard problem costs no more than by itself.

A `while_loop` under `vmap` steps every lane until the last one stops. Here the loop stops when a quarter of the lanes is
still running; these are gathered into a smaller batch, on which it continues, and so on. The sizes are fixed, so that it is all
one compiled program; at most four times as many lanes as needed take a step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree

_SHRINK = 4


def iterate(
    running: Callable[[Any], jax.Array], step: Callable[[Any, PyTree], Any], state: PyTree, arguments: PyTree
) -> PyTree:
    """state = step(state, arguments) while running(state)."""
    step, closed_over = jax.closure_convert(step, state, arguments)

    @jax.custom_batching.custom_vmap
    def loop(state: PyTree, arguments: PyTree, closed_over: PyTree) -> PyTree:
        return jax.lax.while_loop(running, lambda s: step(s, arguments, *closed_over), state)

    @loop.def_vmap
    def _(lanes: int, batched: Any, state: PyTree, arguments: PyTree, closed_over: PyTree) -> tuple[PyTree, Any]:
        where = tuple(jax.tree.map(lambda is_batched: 0 if is_batched else None, batched))
        state = jax.tree.map(
            lambda x, axis: x if axis == 0 else jnp.broadcast_to(x, (lanes, *jnp.shape(x))), state, where[0]
        )

        def one(state: PyTree, arguments: PyTree, closed_over: PyTree) -> PyTree:
            return _tree.where(running(state), step(state, arguments, *closed_over), state)

        found = _shrinking(
            jax.vmap(running), jax.vmap(one, (0, *where[1:])), lanes, state, (arguments, closed_over), where[1:]
        )
        return found, jax.tree.map(lambda _: True, found)

    return loop(state, arguments, closed_over)


def _shrinking(
    running: Callable[[PyTree], jax.Array],
    step: Callable[..., PyTree],
    lanes: int,
    state: PyTree,
    arguments: PyTree,
    where: PyTree,
) -> PyTree:
    """The loop over a batch that shrinks by `_SHRINK` whenever no more lanes than that are still running."""
    result, place = state, None
    while True:
        floor = lanes // _SHRINK
        state = jax.lax.while_loop(
            lambda s, floor=floor: jnp.sum(running(s)) > floor, lambda s, a=arguments: step(s, *a), state
        )
        result = state if place is None else jax.tree.map(lambda x, new, at=place: x.at[at].set(new), result, state)
        if floor == 0:
            return result
        unfinished = jnp.argsort(~running(state), stable=True)[:floor]
        place = unfinished if place is None else place[unfinished]
        state = _gather(state, jax.tree.map(lambda _: 0, state), unfinished)
        arguments = _gather(arguments, where, unfinished)
        lanes = floor


def _gather(tree: PyTree, where: PyTree, lanes: jax.Array) -> PyTree:
    return jax.tree.map(lambda x, axis: x if axis is None else x[lanes], tree, where, is_leaf=lambda x: x is None)
