"""Implicit differentiation of a root, for every mode.

The sign convention of the whole library: at a root F(x*, θ) = 0, with A = ∂₁F and B = ∂₂F,

    JVP:  A ẋ = −B θ̇            VJP:  Aᵀ u = w,   θ̄ = −Bᵀ u.

The solver's answer enters as a constant; `attach` gives it its derivative by `jax.lax.custom_root`, whose tangent system is
solved by `linear.differentiable_solve`. So all modes, `vmap`, `jit` and closures follow from one rule, and the linear solver
is never differentiated.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._tree import PyTree
from bilevel.implicit._binding import bind

OnFailure = Literal["nan", "ignore"]
Solve = linear.LinearSolver | Callable[..., Any] | None
Signature = Callable[..., Any] | inspect.Signature | None
P = ParamSpec("P")
R = TypeVar("R")


def attach(
    fun: Callable[[PyTree], PyTree],
    sol: PyTree,
    solver: linear.LinearSolver,
    on_failure: OnFailure,
    make_system: Callable[[], linear.System | None] = lambda: None,
    max_newton_step: float | None = None,
    start: PyTree = None,
) -> PyTree:
    """`sol` as a differentiable function of everything that `fun` closes over, where `fun(sol)` is zero.

    Args:
      fun: x ↦ F(x), with the structure, shapes and dtypes of x.
      sol: the root, any pytree of floating-point arrays.
      solver: linear solver for the systems with ∂F, with its tolerances.
      on_failure: as in `custom_root`.
      make_system: makes the form in which these systems are best solved; called only if something is differentiated.
      max_newton_step, start: as in `custom_root`, with the start of the solver if it is known.

    Raises:
      ValueError: F(sol) has another structure or other shapes than sol.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> def root(theta):
      ...     found = jax.lax.stop_gradient(jnp.sqrt(theta))
      ...     return bl.implicit.attach(lambda x: x**2 - theta, found, bl.linear.Auto(), "nan")
      >>> print(jax.grad(root)(4.0))
      0.25
    """
    _tree.check_like("the value of the optimality condition", jax.eval_shape(fun, sol), "the solution", sol)
    converted, closed_over = jax.closure_convert(fun, sol)
    if not closed_over and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(sol)):
        return sol  # a plain call: nothing here can be differentiated
    system = make_system()
    residual = jax.lax.stop_gradient(converted(sol, *closed_over))

    def tangent_solve(matvec: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
        def solved(b: PyTree) -> PyTree:
            operator = linear.Operator(matvec)
            return linear.differentiable_solve(
                solver, operator, b, system=system, nan_on_failure=on_failure == "nan"
            ).value

        value = solved(b)
        if max_newton_step is None:
            return value
        near = _is_near(sol, jax.lax.stop_gradient(solved(_tree.cast_like(residual, sol))), start, max_newton_step)
        return _tree.scale(jnp.where(near, 1, jnp.nan), value)  # a factor, which transposition keeps

    return jax.lax.custom_root(
        lambda x: _tree.cast_like(converted(x, *closed_over), x), sol, solve=lambda _, x: x, tangent_solve=tangent_solve
    )


def _is_near(sol: PyTree, step: PyTree, start: PyTree, limit: float) -> jax.Array:
    """Whether the Newton step is short, relative to the solution; where that is zero, to the rounding of the start."""
    size = jnp.maximum(_tree.norm(sol), _tree.norm(_tree.sub(sol, step)))
    if jax.tree.structure(start) == jax.tree.structure(sol):
        size = jnp.maximum(size, _tree.eps(sol) ** 0.5 * _tree.norm(_tree.cast_like(start, sol)).astype(size.dtype))
    return _tree.norm(step) <= limit * size


def _system_of(
    optimality_fun: Callable[..., Any], sol: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> linear.System | None:
    """The best form of the linear systems of a `RootFunction`; None for a plain function."""
    if not isinstance(optimality_fun, linear.RootFunction):
        return None
    return optimality_fun.system(*_stop((sol, *args)), **_stop(kwargs))


def custom_root(
    optimality_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solve = None,
    reference_signature: Signature = None,
    *,
    on_failure: OnFailure = "nan",
    max_newton_step: float | None = 0.1,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a solver so that JAX differentiates its solution by the implicit function theorem.

    The solution x* of `solver(init, *args)` must satisfy `optimality_fun(x*, *args) = 0`. Then `jax.grad`, `jvp`,
    `jacfwd`, `jacrev`, `hessian`, their compositions, `vmap` and `jit` work for any solver: under `jit` or `vmap` it must be
    traceable (NumPy code by `jax.pure_callback`); elsewhere it may be any Python code. The solver is called exactly as you call
    it; the condition's arguments are matched by name (see `docs/from-jaxopt.md`). The start has derivative zero.

    Args:
      optimality_fun: F(x, *args), with the structure, shapes and dtypes of x; everything it uses is differentiated, closures
        included. For example `jax.grad(f)`, or a condition of the catalog: `bilevel.optimality.bind(problem)`.
      has_aux: the solver returns `(x, aux)`. The derivative of aux is NaN.
      solve: linear solver for the systems with ∂₁F: one of `bilevel.linear`, or a function `solve(matvec, b)`. `None` is
        `linear.Auto()`, which solves to ‖A x − b‖ ≤ ε^⅔ ‖b‖ (4e-11 in float64, 2e-5 in float32).
      reference_signature: a function or signature that names the arguments of `optimality_fun` if its own does not.
      on_failure: if a linear solve misses its tolerance, `"nan"` makes the derivative NaN and `"ignore"` keeps it.
      max_newton_step: the answer counts as a solution if a Newton step of F moves it by at most this part of its norm; otherwise
        the derivative is NaN. The default is generous to solvers with loose tolerances. None makes no test, and saves one linear
        solve per derivative.

    Returns:
      A decorator that keeps the signature of the solver. A call of the decorated solver raises TypeError if `optimality_fun` does
      not know an argument or misses one, or if the solution is not made of floating-point arrays; and ValueError if F(x) has
      another structure or other shapes than x.

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
    return _decorator(optimality_fun, optimality_fun, has_aux, solve, reference_signature, on_failure, max_newton_step)


def custom_fixed_point(
    fixed_point_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solve = None,
    reference_signature: Signature = None,
    *,
    on_failure: OnFailure = "nan",
    max_newton_step: float | None = 0.1,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`custom_root` for a solution that is a fixed point, x* = T(x*, *args): F = T − x.

    Arguments, tolerances and errors are those of `custom_root`, with T as `fixed_point_fun`. A map that contains a gradient
    step should have a step size near 1/L: with a unit step on unnormalized data the system is hopelessly ill-conditioned.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> @bl.custom_fixed_point(lambda x, theta: (x + theta / x) / 2)      # Heron's square root
      ... def square_root(init, theta):
      ...     return jnp.sqrt(theta)
      >>> print(jax.grad(square_root, argnums=1)(None, 4.0))
      0.25
    """

    def optimality_fun(x: PyTree, /, *args: Any, **kwargs: Any) -> PyTree:
        return _tree.sub(fixed_point_fun(x, *args, **kwargs), x)

    return _decorator(optimality_fun, fixed_point_fun, has_aux, solve, reference_signature, on_failure, max_newton_step)


def _decorator(
    optimality_fun: Callable[..., Any],
    stated: Callable[..., Any],
    has_aux: bool,
    solve: Solve,
    reference_signature: Signature,
    on_failure: OnFailure,
    max_newton_step: float | None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorator of solvers; `stated` is the function that the user gave, which has the arguments of F."""
    linear_solver = linear.as_solver(solve, linear.Auto())
    if on_failure not in ("nan", "ignore"):
        raise ValueError(f"on_failure must be 'nan' or 'ignore', got {on_failure!r}")

    def decorator(solver: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(solver)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            fun_args, fun_kwargs = bind(solver, stated, reference_signature, args, kwargs)
            sol, aux = _solution_and_aux(solver, _run_undifferentiated(solver, args, kwargs), has_aux)
            sol = attach(
                lambda x: optimality_fun(x, *fun_args, **fun_kwargs),
                sol,
                linear_solver,
                on_failure,
                lambda: _system_of(optimality_fun, sol, fun_args, fun_kwargs),
                max_newton_step,
                _stop(args[0]) if args else None,
            )
            return (sol, _tree.without_derivative(aux, (sol, args, kwargs))) if has_aux else sol

        return wrapper

    return decorator


def root_vjp(
    optimality_fun: Callable[..., Any], sol: PyTree, args: tuple[Any, ...], cotangent: PyTree, solve: Solve = None
) -> tuple[Any, ...]:
    """Vector-Jacobian product of a root: θ̄ = −Bᵀ u with Aᵀ u = w, for all arguments at once.

    Args:
      optimality_fun: F(x, *args), zero at `sol`.
      sol: x*, any pytree.
      args: the other arguments of F, a tuple.
      cotangent: w, with the structure of `sol`.
      solve: as in `custom_root`; if it misses its tolerance, the result is NaN.

    Returns:
      A tuple with one cotangent per argument, with its structure and shapes.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.root_vjp(lambda x, theta: x**2 - theta, jnp.array(2.0), (4.0,), jnp.array(1.0))[0])
      0.25
    """
    _, pull_x = jax.vjp(lambda x: _tree.cast_like(optimality_fun(x, *args), x), sol)
    solver, system = linear.as_solver(solve, linear.Auto()), _system_of(optimality_fun, sol, args, {})
    operator = linear.Operator(lambda v: pull_x(v)[0])
    u = linear.differentiable_solve(
        solver, operator, cotangent, system=system, transposed=True, nan_on_failure=True
    ).value
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
      solve: as in `custom_root`; if it misses its tolerance, the result is NaN.

    Returns:
      The tangent of the solution, with the structure of `sol`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.root_jvp(lambda x, theta: x**2 - theta, jnp.array(2.0), (4.0,), (1.0,)))
      0.25
    """
    _, rhs = jax.jvp(lambda *args: _tree.cast_like(optimality_fun(sol, *args), sol), tuple(args), tuple(tangents))
    _, push_x = jax.linearize(lambda x: _tree.cast_like(optimality_fun(x, *args), x), sol)
    solver, system = linear.as_solver(solve, linear.Auto()), _system_of(optimality_fun, sol, args, {})
    return linear.differentiable_solve(
        solver, linear.Operator(push_x), _tree.scale(-1, rhs), system=system, nan_on_failure=True
    ).value


def _stop(tree: PyTree) -> PyTree:
    """The same values without derivatives; what is not a tracer remains the object that the user passed."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x, tree)


def _run_undifferentiated(solver: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the solver on values without derivatives, so that it is never differentiated.

    If that fails, the solver may be a callback that closes over a tracer: it is then traced to find what it closes over, and
    those values lose their derivatives too. A solver that cannot be traced raises its own first error.
    """
    args, kwargs = _stop((args, kwargs))
    try:
        return solver(*args, **kwargs)
    except Exception:
        arrays = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else None, (args, kwargs))
        rest = jax.tree.map(lambda x: None if isinstance(x, jax.Array) else x, (args, kwargs))

        def of_arrays(arrays: PyTree) -> Any:
            full_args, full_kwargs = _tree.merge(arrays, rest)
            return solver(*full_args, **full_kwargs)

        try:
            converted, closed_over = jax.closure_convert(of_arrays, arrays)
        except Exception:
            converted, closed_over = of_arrays, []
        if not closed_over:
            raise
        return converted(arrays, *_stop(closed_over))


def _solution_and_aux(solver: Callable[..., Any], found: Any, has_aux: bool) -> tuple[PyTree, Any]:
    name = repr(getattr(solver, "__name__", solver))
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(f"has_aux=True: the solver {name} must return (solution, aux), got {type(found).__name__}")
    sol, aux = found if has_aux else (found, None)
    sol = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, sol))
    dtypes = [x.dtype for x in jax.tree.leaves(sol)]
    if not dtypes or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(
            f"the solver {name} must return floating-point arrays to be differentiated, got {_tree.shapes(sol)}: "
            "return anything else as aux (has_aux=True)"
        )
    return sol, aux
