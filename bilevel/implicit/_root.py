"""Implicit differentiation of a root, once, for every mode.

Sign convention of the whole library. At a root F(x*, θ) = 0, with A = ∂₁F and B = ∂₂F,

    JVP:  A ẋ = −B θ̇            VJP:  Aᵀ u = w,   θ̄ = −Bᵀ u.

The solver's answer enters as a constant; `attach` gives it its derivative by `jax.lax.custom_root`, whose tangent
system goes through `jax.lax.custom_linear_solve` with a transposed solve. So forward, reverse and higher modes, `vmap`,
`jit` and closures all follow from one rule, and the linear solver is a black box that nobody differentiates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.core
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._tree import PyTree
from bilevel.implicit._binding import bind

OnFailure = Literal["nan", "ignore"]
Solve = linear.LinearSolver | Callable[..., Any] | None


def solve_system(
    solver: linear.LinearSolver,
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    on_failure: OnFailure,
    system: linear.System | None = None,
    transposed: bool = False,
) -> PyTree:
    """A⁻¹ b, differentiable and transposable; NaN where the solver missed its tolerance, unless failures are ignored.

    `system` is the form in which A, or with `transposed` Aᵀ, is solved; the derivatives are those of `matvec`.
    """
    nan = on_failure == "nan"
    if system is None:
        return linear.differentiable_solve(solver, linear.Operator(matvec), b, nan_on_failure=nan).value

    def checked(found: linear.LinearSolution):
        return jax.tree.map(lambda x: jnp.where(found.converged | (not nan), x, jnp.nan), found.value)

    def solve(_, b):
        return checked(system.solve(solver, b))

    def solve_transposed(_, b):
        return checked(system.solve_transposed(solver, b))

    if transposed:
        solve, solve_transposed = solve_transposed, solve
    x = jax.lax.custom_linear_solve(
        lambda v: _tree.tie(matvec(v)), _tree.tie(b), solve=solve, transpose_solve=solve_transposed
    )
    return _tree.tie(x)


def attach(
    fun: Callable[[PyTree], PyTree],
    sol: PyTree,
    solver: linear.LinearSolver,
    on_failure: OnFailure,
    make_system: Callable[[], linear.System | None] = lambda: None,
) -> PyTree:
    """`sol` as a differentiable function of everything that `fun`, which is zero there, closes over."""
    _tree.check_like("the value of the optimality condition", jax.eval_shape(fun, sol), "the solution", sol)
    converted, closed_over = jax.closure_convert(fun, sol)
    if not closed_over and not _has_tracer(sol):
        return sol  # a plain call: nothing here can be differentiated
    system = make_system()
    return jax.lax.custom_root(
        lambda x: _tree.cast_like(converted(x, *closed_over), x),
        sol,
        solve=lambda _, x: x,
        tangent_solve=lambda matvec, b: solve_system(solver, matvec, b, on_failure, system),
    )


def _system_of(optimality_fun, sol, args, kwargs) -> linear.System | None:
    """What a condition of the catalog knows about its linear systems; None for a plain function."""
    if not isinstance(optimality_fun, linear.RootFunction):
        return None
    return optimality_fun.system(*_stop((sol, *args)), **_stop(kwargs))


def custom_root(
    optimality_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solve = None,
    reference_signature: Any = None,
    *,
    on_failure: OnFailure = "nan",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a solver so that JAX differentiates its solution by the implicit function theorem.

    The solution x* of `solver(init, *args)` must satisfy `optimality_fun(x*, *args) = 0`. Then `jax.grad`, `jvp`,
    `jacfwd`, `jacrev`, `hessian`, their compositions, `vmap` and `jit` work, whatever the solver is made of: under
    `jit` or `vmap` it must be traceable (a NumPy code through `jax.pure_callback`); outside, it may be any Python code.

    The solver is called exactly as you call it; the condition's arguments are found by name (see `docs/from-jaxopt.md`).
    The start has derivative zero, since the solution does not depend on it.

    Args:
      optimality_fun: F(x, *args), with the structure, shapes and dtypes of x; all it uses is differentiated, closures
        too. For example `jax.grad(f)`, or a condition of the catalog: `bilevel.optimality.bind(problem)`.
      has_aux: the solver returns `(x, aux)`. Differentiating through aux gives NaN.
      solve: linear solver for the system with ∂₁F: one of `bilevel.linear`, or a function `solve(matvec, b)`.
        None is `linear.Auto()`.
      reference_signature: a function or signature that names the arguments of `optimality_fun` where its own does not.
      on_failure: when the linear solve missed its tolerance: `"nan"` makes the derivative NaN, `"ignore"` keeps it.

    Returns:
      A decorator of solvers.

    Raises:
      TypeError: when called, if an argument is not known to `optimality_fun`, or one that it needs is missing.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> def ridge_loss(x, theta, features, y):
      ...     return jnp.sum((features @ x - y) ** 2) / 2 + theta * jnp.sum(x**2) / 2
      >>> @bl.custom_root(jax.grad(ridge_loss))
      ... def ridge_solver(init, theta, features, y):
      ...     gram = features.T @ features
      ...     return jnp.linalg.solve(gram + theta * jnp.eye(gram.shape[0]), features.T @ y)
      >>> features, y = jnp.eye(2), jnp.array([2.0, 4.0])
      >>> print(jax.jacobian(ridge_solver, argnums=1)(None, 1.0, features, y))
      [-0.5 -1. ]

    Reference: Blondel et al. 2022, https://arxiv.org/abs/2105.15183.
    """
    linear_solver = linear.as_solver(solve, linear.Auto())
    if on_failure not in ("nan", "ignore"):
        raise ValueError(f"on_failure must be 'nan' or 'ignore', got {on_failure!r}")

    def decorator(solver):
        @functools.wraps(solver)
        def wrapper(*args, **kwargs):
            fun_args, fun_kwargs = bind(solver, optimality_fun, reference_signature, args, kwargs)
            found = _run_undifferentiated(solver, args, kwargs)
            sol, aux = _split_aux(solver, found) if has_aux else (found, None)
            sol = _as_solution(solver, sol)
            sol = attach(
                lambda x: optimality_fun(x, *fun_args, **fun_kwargs),
                sol,
                linear_solver,
                on_failure,
                lambda: _system_of(optimality_fun, sol, fun_args, fun_kwargs),
            )
            return (sol, _without_derivative(aux, sol, args, kwargs)) if has_aux else sol

        return wrapper

    return decorator


def custom_fixed_point(
    fixed_point_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solve = None,
    reference_signature: Any = None,
    *,
    on_failure: OnFailure = "nan",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`custom_root` for a solution that is a fixed point, x* = T(x*, *args): F = T − x.

    Args and the rest as for `custom_root`, with `fixed_point_fun` for T. A map that contains a gradient step should
    carry a step size near 1/L: with a unit step on unnormalized data the system is hopelessly conditioned.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> @bl.custom_fixed_point(lambda x, theta: (x + theta / x) / 2)      # Heron's square root
      ... def square_root(init, theta):
      ...     return jnp.sqrt(theta)
      >>> print(jax.grad(square_root, argnums=1)(None, 4.0))
      0.25
    """

    def optimality_fun(x, *args, **kwargs):
        return _tree.sub(fixed_point_fun(x, *args, **kwargs), x)

    reference = fixed_point_fun if reference_signature is None else reference_signature
    functools.update_wrapper(optimality_fun, fixed_point_fun, assigned=("__name__", "__doc__"), updated=())
    return custom_root(optimality_fun, has_aux, solve, reference, on_failure=on_failure)


def root_vjp(
    optimality_fun: Callable[..., Any],
    sol: PyTree,
    args: tuple[Any, ...],
    cotangent: PyTree,
    solve: Solve = None,
) -> tuple[Any, ...]:
    """Vector-Jacobian product of a root: θ̄ = −Bᵀ u with Aᵀ u = w, for every argument at once.

    Args:
      optimality_fun: F(x, *args), zero at `sol`.
      sol: x*, any pytree.
      args: the other arguments of F, a tuple; the root is differentiated with respect to each of them.
      cotangent: w, with the structure of `sol`.
      solve: as in `custom_root`; NaN is returned where it misses its tolerance.

    Returns:
      A tuple with one cotangent per argument.
    """
    solver = linear.as_solver(solve, linear.Auto())
    _, pull_x = jax.vjp(lambda x: _tree.cast_like(optimality_fun(x, *args), x), sol)
    system = _system_of(optimality_fun, sol, args, {})
    u = solve_system(solver, lambda v: pull_x(v)[0], cotangent, "nan", system, transposed=True)
    _, pull_args = jax.vjp(lambda *args: _tree.cast_like(optimality_fun(sol, *args), sol), *args)
    return pull_args(_tree.scale(-1, u))


def root_jvp(
    optimality_fun: Callable[..., Any],
    sol: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    solve: Solve = None,
) -> PyTree:
    """Jacobian-vector product of a root: ẋ with A ẋ = −B θ̇.

    Args:
      optimality_fun: F(x, *args), zero at `sol`.
      sol: x*, any pytree.
      args: the other arguments of F, a tuple.
      tangents: θ̇, one per argument, as `jax.jvp` takes them.
      solve: as in `custom_root`; NaN is returned where it misses its tolerance.

    Returns:
      The tangent of the solution, with the structure of `sol`.
    """
    solver = linear.as_solver(solve, linear.Auto())
    _, rhs = jax.jvp(lambda *args: _tree.cast_like(optimality_fun(sol, *args), sol), tuple(args), tuple(tangents))
    _, push_x = jax.linearize(lambda x: _tree.cast_like(optimality_fun(x, *args), x), sol)
    return solve_system(solver, push_x, _tree.scale(-1, rhs), "nan", _system_of(optimality_fun, sol, args, {}))


def _stop(tree: PyTree) -> PyTree:
    """The same values without derivatives; whatever is not a tracer stays the very object that the user passed."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x, tree)


def _run_undifferentiated(solver, args, kwargs):
    """Call the solver on values, so that its inner workings never meet a derivative.

    If that fails it may be because the solver closes over a tracer and cannot be differentiated (a callback): then it is
    traced to find what it closes over, and those values are stopped too. A solver that cannot be traced raises its own
    first error.
    """
    args, kwargs = _stop((args, kwargs))
    try:
        return solver(*args, **kwargs)
    except Exception:
        leaves, tree = jax.tree.flatten((args, kwargs))
        moving = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

        def flat(*arrays):
            filled = list(leaves)
            for i, x in zip(moving, arrays, strict=True):
                filled[i] = x
            full_args, full_kwargs = jax.tree.unflatten(tree, filled)
            return solver(*full_args, **full_kwargs)

        try:
            converted, closed_over = jax.closure_convert(flat, *[leaves[i] for i in moving])
        except Exception:
            converted, closed_over = None, []
        if converted is None or not closed_over:
            raise
        return converted(*[leaves[i] for i in moving], *_stop(closed_over))


def _split_aux(solver, found):
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(
            f"has_aux=True: the solver {getattr(solver, '__name__', solver)!r} must return (solution, aux), "
            f"got {type(found).__name__}"
        )
    return found


def _as_solution(solver, sol):
    sol = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, sol))
    wrong = [x for x in jax.tree.leaves(sol) if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong or not jax.tree.leaves(sol):
        raise TypeError(
            f"the solver {getattr(solver, '__name__', solver)!r} must return floating-point arrays to be differentiated, "
            f"got {_tree.shapes(sol)}: return anything else as aux (has_aux=True)"
        )
    return sol


def _has_tracer(tree: PyTree) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _without_derivative(aux, *sources):
    """`aux` with a NaN derivative with respect to all sources, instead of a silent zero."""
    inputs = [x for x in jax.tree.leaves(sources) if isinstance(x, jax.core.Tracer) and _tree.is_inexact(x)]

    @jax.custom_jvp
    def poison(value, *inputs):
        return value

    @poison.defjvp
    def _(primals, tangents):
        total = jnp.stack([jnp.sum(t).astype(float) for t in tangents[1:]]).sum()
        value = primals[0]
        return value, (jnp.nan * total).astype(value.dtype) * jnp.ones_like(value)

    def mark(x):
        if not (isinstance(x, jax.Array) and _tree.is_inexact(x) and inputs):
            return x
        return poison(jax.lax.stop_gradient(x), *inputs)

    return jax.tree.map(mark, aux)
