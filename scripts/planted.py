"""Plant faults in small bilevel problems, and count those that a hypergradient does not tell of: python scripts/planted.py

A fault is silent if the hypergradient is off by more than a tenth and its verdict is "trusted"; a false alarm is another
verdict on a hypergradient that is off by less than a hundredth. The truth is computed in double precision, from a solution
polished by Newton's method, with a dense adjoint. Usage: planted.py [instances]
[family …], 48 instances of each fault and all families by default.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import hypergrad, inner, linear, optimality
from bilevel.inner import InnerSolution, InnerSolver, SolveProgress
from bilevel.operators.projection import projection_non_negative, projection_simplex
from bilevel.operators.prox import prox_group_lasso, prox_lasso

N, ROWS = 8, 24
Draw = Callable[[np.random.Generator], tuple[Any, Any, Any]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of problem, and how to draw one: hparams, data and the start of the inner variable, as float64."""

    name: str
    problem: bl.Problem
    draw: Draw
    solver: InnerSolver
    other: Callable[[Any], Any] = lambda hparams: jax.tree.map(lambda h: h + np.log(2), hparams)  # θ of another problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Returned(InnerSolver):
    """A solver that returns its start and says that it converged."""

    def check(self, problem: bl.Problem) -> None:
        """Serve every problem."""

    def init(self, at: bl.At, params: Any) -> Any:
        """Done."""
        progress = SolveProgress.start(jnp.result_type(float)).ending(jnp.int32(bl.Status.CONVERGED))
        return InnerSolution(params, dataclasses.replace(progress, residual=jnp.zeros_like(progress.residual)))

    def step(self, at: bl.At, state: Any) -> Any:
        """Nothing."""
        return state


# Problems


def _squares(x: Any, h: Any, d: Any) -> Any:
    return jnp.sum((d["X"] @ x - d["y"]) ** 2) / (2 * ROWS)


def _validation(x: Any, h: Any, d: Any) -> Any:
    return jnp.sum((d["V"] @ x - d["v"]) ** 2) / (2 * ROWS)


def _logistic(x: Any, h: Any, d: Any) -> Any:
    return jnp.mean(jnp.logaddexp(0.0, -jnp.sign(d["y"]) * (d["X"] @ x))) + jnp.exp(h) * x @ x / 2


def _network(p: Any, h: Any, d: Any) -> Any:
    out = jnp.tanh(d["X"][:, :3] @ p["W"]) @ p["w"]
    return jnp.mean((out - d["y"]) ** 2) + jnp.exp(h) * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))


def _network_validation(p: Any, h: Any, d: Any) -> Any:
    return jnp.mean((jnp.tanh(d["V"][:, :3] @ p["W"]) @ p["w"] - d["v"]) ** 2)


def _group(x: Any, h: Any, step: Any) -> Any:
    steps = jnp.broadcast_to(step, (x.shape[0], 1))[:, 0]
    return jax.vmap(lambda row, s: prox_group_lasso(row, jnp.exp(h), s))(x, steps)


def _dual(x: Any, h: Any, d: Any) -> Any:
    w = d["X"][:6].T @ (d["labels"] - x) / jnp.exp(h)
    return jnp.exp(h) * jnp.sum(w**2) / 2 + jnp.vdot(x, d["labels"])


def _dual_validation(x: Any, h: Any, d: Any) -> Any:
    return jnp.mean((d["V"] @ (d["X"][:6].T @ (d["labels"] - x)) / jnp.exp(h) - d["targets"]) ** 2)


def _program(h: Any, d: Any) -> bl.QP:
    Q = d["X"].T @ d["X"] / ROWS + 0.1 * jnp.eye(N)
    return bl.QP(Q=Q, c=h - d["X"].T @ d["y"] / ROWS, E=jnp.ones((1, N)), d=jnp.ones(1), M=-jnp.eye(N), h=jnp.zeros(N))


def regression(rng: np.random.Generator, condition: float = 1.0) -> dict[str, Any]:
    """Two tables of one linear model, with this condition number of the scales of the columns."""
    scales = condition ** np.linspace(0, -0.5, N)
    X, V = rng.normal(size=(2, ROWS, N)) * scales
    truth = rng.normal(size=N) / scales
    y, v = X @ truth + rng.normal(size=ROWS), V @ truth + rng.normal(size=ROWS)
    return {"X": X, "y": y, "V": V, "v": v}


def _table(hparams: Callable[[np.random.Generator], Any], start: Any) -> Draw:
    return lambda rng: (hparams(rng), regression(rng), start)


def _classes(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    one_hot = np.eye(3)[rng.integers(3, size=(2, ROWS))]
    return (
        rng.uniform(-1, 1),
        regression(rng) | {"labels": one_hot[0][:6], "targets": one_hot[1]},
        np.full((6, 3), 1 / 3),
    )


def _penalty(low: float, high: float) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.uniform(low, high)


def _network_start(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    return rng.uniform(-4, -2), regression(rng), {"W": rng.normal(size=(3, 3)), "w": rng.normal(size=3)}


def _cell(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    W = rng.normal(size=(N, N))
    return rng.normal(size=N), regression(rng) | {"W": 0.7 * W / np.linalg.norm(W, 2)}, np.zeros(N)


def _shifted(hparams: Any) -> Any:
    return jax.tree.map(lambda h: 2 * h + 0.5, hparams)


PROX = {"prox": lambda x, h, d, step: prox_lasso(x, jnp.exp(h), step), "separable": True}
ZERO = np.zeros(N)
FAMILIES = [
    Family(
        "quadratic",
        bl.Problem(lambda x, h, d: _squares(x, h, d) + jnp.sum((x - h) ** 2) / 20, _validation),
        _table(lambda rng: rng.normal(size=N), ZERO),
        inner.LBFGS(),
        _shifted,
    ),
    Family(
        "ridge",
        bl.Problem(lambda x, h, d: _squares(x, h, d) + jnp.exp(h) * x @ x / 2, _validation),
        _table(_penalty(-4, 1), ZERO),
        inner.LBFGS(),
    ),
    Family("logistic", bl.Problem(_logistic, _validation), _table(_penalty(-4, 0), ZERO), inner.LBFGS()),
    Family("lasso", bl.Problem(_squares, _validation, **PROX), _table(_penalty(-3, -1), ZERO), inner.FISTA()),
    Family(
        "group_lasso",
        bl.Problem(
            lambda x, h, d: _squares(x.ravel(), h, d),
            lambda x, h, d: _validation(x.ravel(), h, d),
            prox=lambda x, h, d, step: _group(x, h, step),
            separable="rows",
        ),
        _table(_penalty(-3, -1), ZERO.reshape(4, 2)),
        inner.FISTA(),
    ),
    Family(
        "nnls",
        bl.Problem(
            lambda x, h, d: _squares(x, h, d) - jnp.vdot(h, x),
            _validation,
            projection=lambda x, h, d: projection_non_negative(x),
            polyhedral=True,
        ),
        _table(lambda rng: rng.normal(size=N) / 5, ZERO),
        inner.FISTA(),
        _shifted,
    ),
    Family(
        "svm_dual",
        bl.Problem(
            _dual, _dual_validation, projection=lambda x, h, d: jax.vmap(projection_simplex)(x), polyhedral=True
        ),
        _classes,
        inner.FISTA(),
    ),
    Family(
        "qp",
        bl.Problem(
            inner=bl.Program(_program), outer_loss=lambda x, h, d: _validation(x.primal, h, d) + jnp.sum(x.primal**2)
        ),
        _table(lambda rng: rng.normal(size=N) / 5, optimality.KKTSolution(ZERO, np.zeros(1), np.zeros(N))),
        inner.OSQP(),
        _shifted,
    ),
    Family(
        "fixed_point",
        bl.Problem(
            fixed_point=lambda x, h, d: 0.8 * jnp.tanh(d["W"] @ x) + 0.3 * d["W"].T @ x + h, outer_loss=_validation
        ),
        _cell,
        inner.FixedPointIteration(),
        _shifted,
    ),
    Family("network", bl.Problem(_network, _network_validation), _network_start, inner.LBFGS()),
    Family(
        "deq",
        bl.Problem(fixed_point=lambda x, h, d: jnp.tanh(d["W"] @ x + h), outer_loss=_validation),
        _cell,
        inner.Anderson(),
        _shifted,
    ),
]


# Faults


def answers(exact: Any, other: Any, start: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """What a solver may return instead of the solution."""
    raveled, unravel = ravel_pytree(exact)
    flat: Any = np.asarray(raveled)
    noise = rng.normal(size=flat.shape) * np.linalg.norm(flat) / flat.size**0.5

    def one(value: float) -> Any:
        return unravel(jnp.where(jnp.arange(flat.size) == rng.integers(flat.size), value, flat))

    yield "control: exact", exact
    for size in (1e-9, 1e-7):
        yield f"control: error {size:.0e}", unravel(flat + size * noise)
    for size in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
        yield f"answer: error {size:.0e}", unravel(flat + size * noise)
    yield "answer: zero", jax.tree.map(np.zeros_like, exact)
    yield "answer: the start", start
    yield "answer: of another problem", other
    yield "answer: scaled by 0.9", unravel(0.9 * flat)
    yield "answer: reversed", unravel(-flat)
    yield "answer: one entry is zero", one(0.0)
    yield "answer: NaN", one(np.nan)
    yield "answer: infinite", one(np.inf)
    yield "answer: one entry of 1e30", one(1e30)


ADJOINTS = {
    "adjoint: rtol 0.5": linear.CG(rtol=0.5),
    "adjoint: rtol 0.1": linear.GMRES(rtol=0.1),
    "adjoint: one step": linear.CG(max_steps=1),
    "adjoint: two steps": linear.GMRES(max_steps=2),
    "adjoint: a truncated series": linear.Neumann(max_steps=3),
    "adjoint: damped": linear.Damped(ridge=0.1),
}


def tables(data: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """What may be wrong with the data."""
    X, y = data["X"], data["y"]

    def one(table: np.ndarray, value: float) -> np.ndarray:
        return np.where(np.arange(table.size).reshape(table.shape) == rng.integers(table.size), value, table)

    yield "control: solved", data
    yield "data: NaN", data | {"X": one(X, np.nan)}
    yield "data: infinite", data | {"X": one(X, np.inf)}
    yield "data: 1e30", data | {"y": one(y, 1e30)}
    yield "data: times 1e12", data | {"X": 1e12 * X}
    yield "data: times 1e-12", data | {"X": 1e-12 * X}
    yield "data: two columns are one", data | {"X": np.concatenate([X[:, :1], X[:, :-1]], 1)}
    yield "data: condition 1e3", regression(rng, 1e3) | {k: v for k, v in data.items() if k not in "XyVv"}
    yield "data: condition 1e5", regression(rng, 1e5) | {k: v for k, v in data.items() if k not in "XyVv"}


def solvers(family: Family) -> dict[str, InnerSolver]:
    """The family's solver, stopped early."""
    return {
        f"inner: {name}": dataclasses.replace(family.solver, **settings)
        for name, settings in {
            "one step": {"max_steps": 1},
            "three steps": {"max_steps": 3},
            "rtol 0.3": {"rtol": 0.3},
            "rtol 0.03": {"rtol": 0.03},
            "rtol 0.003": {"rtol": 0.003},
        }.items()
    }


# Runs


def run(problem: bl.Problem, solver: InnerSolver, estimator: hypergrad.Estimator) -> Callable[..., Any]:
    """The hypergradients of a batch, with the verdicts of a loop: the full one where the cheap one is not sure."""

    def one(p: Any, h: Any, d: Any) -> Any:
        cheap = estimator.run(problem, solver, p, h, d)
        if estimator.verdict == "off":
            return cheap
        full = dataclasses.replace(estimator, verdict="full").run(problem, solver, p, h, d)
        assert cheap.verdict is not None
        sure = cheap.verdict.reason != hypergrad.Reason.UNEXAMINED
        verdict = jax.tree.map(lambda a, b: jnp.where(sure, a, b), cheap.verdict, full.verdict)
        return dataclasses.replace(cheap, verdict=verdict)

    return jax.jit(jax.vmap(one))


def polished(family: Family) -> Callable[..., Any]:
    """The solution in double precision, by the family's solver and Newton's method; and whether it is one."""
    bound = optimality.bind(family.problem)

    def solve(params: Any, hparams: Any, data: Any) -> tuple[Any, Any]:
        solver = dataclasses.replace(family.solver, rtol=1e-10, max_steps=20_000)
        found = solver.solve(family.problem, params, hparams, data).params
        flat, unravel = ravel_pytree(found)

        def residual(x: Any) -> Any:
            return ravel_pytree(bound(unravel(x), hparams, data))[0]

        def newton(x: Any, _: None) -> tuple[Any, Any]:
            step = jnp.linalg.lstsq(jax.jacfwd(residual)(x), residual(x))[0]
            return x - step, jnp.linalg.norm(step) / jnp.linalg.norm(x)

        flat, steps = jax.lax.scan(newton, flat, length=8)
        return unravel(flat), steps[-1] <= 1e-9

    return jax.jit(jax.vmap(solve))


@dataclasses.dataclass
class Count:
    """Outcomes of one fault."""

    total: int = 0
    wrong: int = 0
    silent: int = 0
    sound: int = 0
    alarms: int = 0

    def add(self, found: hypergrad.Hypergradient, truth: Any, usable: np.ndarray) -> None:
        """Count a batch, against the true hypergradients."""
        lanes = len(usable)
        grads, right = (
            np.concatenate([np.asarray(x, float).reshape(lanes, -1) for x in jax.tree.leaves(tree)], 1)
            for tree in (found.grad, truth)
        )
        with np.errstate(all="ignore"):
            error = np.linalg.norm(grads - right, axis=1) / np.linalg.norm(right, axis=1)
        assert found.verdict is not None
        trusted = np.asarray(found.verdict.level) == hypergrad.Level.TRUSTED
        wrong, sound = ~(error <= 0.1) & usable, (error <= 0.01) & usable
        self.total += int(usable.sum())
        self.wrong += int(wrong.sum())
        self.silent += int((wrong & trusted).sum())
        self.sound += int(sound.sum())
        self.alarms += int((sound & ~trusted).sum())


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack([np.asarray(a, float) for a in x]), *trees)


def _by_name(batches: list[list[tuple[str, Any]]]) -> dict[str, Any]:
    names = [name for name, _ in batches[0]]
    return {name: _stacked([dict(batch)[name] for batch in batches]) for name in names}


def outcomes(family: Family, instances: int, verdict: Any = "cheap") -> Iterator[tuple[str, Count]]:
    """The count of each fault for a family."""
    rngs = [np.random.default_rng([i, len(family.name)]) for i in range(instances)]
    hparams, data, start = (list(x) for x in zip(*(family.draw(rng) for rng in rngs), strict=True))
    solve, implicit = polished(family), hypergrad.Implicit(verdict=verdict)
    direct = run(family.problem, Returned(), hypergrad.Implicit(linear=linear.Direct(), verdict="off"))
    h, d, s = _stacked(hparams), _stacked(data), _stacked(start)
    exact, usable = solve(s, h, d)
    usable, truth = np.asarray(usable), direct(exact, h, d).grad
    other = solve(s, jax.vmap(family.other)(h), d)[0]
    lane = lambda tree, i: jax.tree.map(lambda x: np.asarray(x[i]), tree)  # noqa: E731

    def counted(found: Any, truth: Any = truth, usable: np.ndarray = usable) -> Count:
        count = Count()
        count.add(found, truth, usable)
        return count

    judged = run(family.problem, Returned(), implicit)
    given = _by_name([list(answers(lane(exact, i), lane(other, i), start[i], rng)) for i, rng in enumerate(rngs)])
    for name, answer in given.items():
        yield name, counted(judged(answer, h, d))
    for name, solver in ADJOINTS.items():
        estimator = dataclasses.replace(implicit, linear=solver)
        yield name, counted(run(family.problem, Returned(), estimator)(exact, h, d))
    for name, solver in solvers(family).items():
        yield name, counted(run(family.problem, solver, implicit)(s, h, d))
    if family.solver.differentiable:
        for steps in (3, 30):
            unrolled = hypergrad.Unrolled(steps=steps, verdict=verdict)
            yield f"unrolled: {steps} steps", counted(run(family.problem, family.solver, unrolled)(s, h, d))
    solved = run(family.problem, family.solver, implicit)
    for name, table in _by_name([list(tables(data[i], rng)) for i, rng in enumerate(rngs)]).items():
        exact, usable = solve(s, h, table)
        truth, finite = direct(exact, h, table).grad, "NaN" in name or "infinite" in name
        usable = np.ones(instances, bool) if finite else np.asarray(usable)
        yield name, counted(solved(s, h, table), truth, usable)
        with jax.enable_x64(False):
            single = jax.tree.map(lambda x: jnp.asarray(x, "float32"), (s, h, table))
            yield f"{name}, float32", counted(solved(*single), truth, usable)


def main() -> None:
    """Print the table, kind by kind, and exit with 1 if a fault is silent."""
    jax.config.update("jax_enable_x64", True)
    instances, chosen = int((sys.argv[1:] or ["48"])[0]), sys.argv[2:]
    total: dict[str, Count] = {}
    for family in FAMILIES:
        if chosen and family.name not in chosen:
            continue
        for name, count in outcomes(family, instances):
            kind = total.setdefault(name, Count())
            for field in dataclasses.fields(Count):
                setattr(kind, field.name, getattr(kind, field.name) + getattr(count, field.name))
            if count.silent or count.alarms:
                print(f"  {family.name}, {name}: {count}", file=sys.stderr)
    print("| fault | instances | wrong | silent | sound | false alarms |\n|---|---|---|---|---|---|")
    for name, count in total.items():
        print(f"| {name} | {count.total} | {count.wrong} | {count.silent} | {count.sound} | {count.alarms} |")
    sums = [sum(getattr(count, field.name) for count in total.values()) for field in dataclasses.fields(Count)]
    print(f"| all | {' | '.join(map(str, sums))} |")
    sys.exit(int(sums[2] > 0))


if __name__ == "__main__":
    main()
