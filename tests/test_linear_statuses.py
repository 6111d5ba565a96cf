"""Linear solvers: which system ends in which status, by which method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_cases import BROKEN, LIMIT, NEGATIVE, OK, PROBLEMS, SINGULAR, STUCK, N, run, status_of, title

from bilevel import linear
from bilevel.linear import (
    CG,
    GMRES,
    LSMR,
    MINRES,
    Auto,
    BiCGStab,
    Damped,
    Direct,
    LinearSolver,
    Neumann,
    NormalCG,
    Nystrom,
    Operator,
    Refined,
    Wrapped,
)

pytestmark = pytest.mark.slice(6)


# Columns: definite, indefinite, nonsymmetric, singular consistent, singular inconsistent, condition 1e6. Structure is
# declared as it is; None: the method is not for it, and any status but a wrong `CONVERGED` will do.
EXPECTED = {
    CG(): (OK, NEGATIVE, None, OK, None, OK),
    GMRES(): (OK, OK, OK, OK, STUCK, OK),
    MINRES(): (OK, OK, None, OK, STUCK, OK),
    BiCGStab(): (OK, OK, OK, OK, None, OK),
    LSMR(): (OK, OK, OK, OK, STUCK, OK),
    NormalCG(): (OK, OK, OK, OK, STUCK, OK),
    Neumann(): (OK, BROKEN, OK, LIMIT, LIMIT, LIMIT),
    Nystrom(max_steps=5): (OK, NEGATIVE, None, OK, STUCK, OK),
    Direct(): (OK, OK, OK, None, None, OK),
    Direct(method="qr"): (OK, OK, OK, None, None, OK),
    Direct(method="svd"): (OK, OK, OK, OK, STUCK, OK),
    Refined(): (OK, OK, OK, None, None, OK),
    Refined(solver=MINRES()): (OK, OK, None, OK, STUCK, None),
}
SYMMETRIC = {name: np.allclose(a, a.T) for name, (a, _) in PROBLEMS.items()}


def structure_of(problem):
    return "symmetric" if SYMMETRIC[problem] else "general"


@pytest.mark.usefixtures("x64")
class TestStatuses:
    @pytest.mark.parametrize("solver", EXPECTED, ids=title)
    def test_table(self, solver):
        for (name, (a, b)), expected in zip(PROBLEMS.items(), EXPECTED[solver], strict=True):
            found = run(solver, structure_of(name), False, a, b)
            residual = np.linalg.norm(a @ np.asarray(found.value) - b)
            within = residual <= np.finfo(float).eps ** (2 / 3) * np.linalg.norm(b) * (1 + 1e-9)
            assert (status_of(found) == OK) <= within, name
            if expected is not None:
                assert status_of(found) == expected, name
            if expected == OK and "singular" not in name:
                error = np.linalg.norm(np.asarray(found.value) - np.linalg.solve(a, b))
                assert error <= 1e-9 * np.linalg.cond(a) * np.linalg.norm(np.linalg.solve(a, b)), name

    def test_every_method_is_in_the_table(self):
        kinds = {v for v in vars(linear).values() if isinstance(v, type) and issubclass(v, LinearSolver)}
        assert {type(solver) for solver in EXPECTED} == kinds - {LinearSolver, Auto, Damped, Wrapped}

    @pytest.mark.parametrize("solver", [MINRES(), LSMR(), NormalCG(), Direct(method="svd")], ids=title)
    @pytest.mark.parametrize("seed", [0, 1])
    def test_inconsistent_system_ends_early_in_least_squares(self, solver, seed):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
        values = rng.normal(size=60)
        values[:3] = 0
        a, b = q @ np.diag(values) @ q.T, rng.normal(size=60)
        found = run(solver, "symmetric", True, (a + a.T) / 2, b)
        assert status_of(found) == STUCK
        assert int(found.steps) < 300
        assert float(found.residual) == pytest.approx(np.linalg.norm(q[:, :3].T @ b), rel=1e-10)


FAMILIES = list({type(solver): solver for solver in reversed(EXPECTED)}.values())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", FAMILIES, ids=title)
def test_odd_leaves(solver):
    """An empty leaf, a leaf of one, a scalar: coupled, and without jit."""
    b = {"empty": jnp.zeros((0, 3)), "one": jnp.ones(1), "scalar": jnp.asarray(2.0)}

    def matvec(v):
        return {"empty": v["empty"], "one": 2 * v["one"] + v["scalar"], "scalar": v["one"][0] + 2 * v["scalar"]}

    found = jax.jit(lambda b: solver.solve(Operator(matvec, "positive_definite"), b))(b)
    assert status_of(found) == OK
    assert found.value["empty"].shape == (0, 3)
    np.testing.assert_allclose([found.value["one"][0], found.value["scalar"]], [0, 1], atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_auto_on_large_singular_systems():
    for structure, a in (("general", np.triu(SINGULAR)), ("symmetric", SINGULAR), ("positive_definite", SINGULAR)):
        b = a @ np.arange(1.0, N + 1)
        found = run(Auto(direct_below=0), structure, True, a, b)
        assert status_of(found) == OK
        found = run(Auto(direct_below=0), structure, True, SINGULAR, np.ones(N))
        assert status_of(found) == STUCK
