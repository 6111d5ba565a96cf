"""Preconditioners: fewer steps, the same answer, and the inverse that their formula promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_cases import relative_error
from problems import status_of

from bilevel import Status, linear
from bilevel.linear import CG, GMRES, MINRES, BiCGStab, DiagonalPreconditioner, LowRankPreconditioner, Operator

pytestmark = [pytest.mark.slice(6), pytest.mark.usefixtures("x64")]

N = 40
rng = np.random.default_rng(0)
Q = np.linalg.qr(rng.normal(size=(N, N)))[0]
RHS = rng.normal(size=N)
SCALES = np.logspace(-3, 0, N)
DIAGONAL_HEAVY = np.diag(SCALES) @ (np.eye(N) + 0.1 * Q @ np.diag(np.linspace(0, 1, N)) @ Q.T) @ np.diag(SCALES)
SPIKES = np.r_[np.logspace(1, 4, 6), np.linspace(1, 2, N - 6)]
SPIKED = Q @ np.diag(SPIKES) @ Q.T
INDEFINITE = np.diag(SCALES) @ np.diag(np.where(np.arange(N) % 2, 1.0, -1.0)) @ np.diag(SCALES)
INDEFINITE = INDEFINITE + 0.05 * np.diag(SCALES) @ (Q + Q.T) @ np.diag(SCALES) / 2
NONSYMMETRIC = np.diag(SCALES) @ (np.eye(N) + 0.3 * rng.normal(size=(N, N)) / np.sqrt(N))
SOLVERS = [CG, MINRES, GMRES, BiCGStab]
DEFINITE = "positive_definite"


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(solver, structure, a, b):
    return solver.solve(Operator(lambda v: a @ v, structure), b)


def built(preconditioner, a, structure="positive_definite"):
    """M⁻¹ as a matrix."""
    operator, zeros = Operator(lambda v: jnp.asarray(a) @ v, structure), jnp.zeros(len(a))
    return jax.jit(lambda vectors: jax.vmap(preconditioner.build(operator, zeros), out_axes=1)(vectors))(np.eye(len(a)))


def solver_of(kind, **settings):
    """Restarted early, so that GMRES has something to gain, and counted by products."""
    return kind(**settings, **({"restart": 10} if kind is GMRES else {}))


def test_every_preconditioner_is_here():
    kinds = {v for v in vars(linear).values() if isinstance(v, type) and issubclass(v, linear.Preconditioner)}
    assert kinds - {linear.Preconditioner} == {
        DiagonalPreconditioner,
        linear.NystromPreconditioner,
        LowRankPreconditioner,
    }


class TestGain:
    @pytest.mark.parametrize(
        ("kind", "a", "structure", "preconditioner"),
        [
            *((kind, DIAGONAL_HEAVY, DEFINITE, DiagonalPreconditioner()) for kind in SOLVERS),
            (CG, DIAGONAL_HEAVY, DEFINITE, DiagonalPreconditioner(diagonal=np.diag(DIAGONAL_HEAVY))),
            (CG, DIAGONAL_HEAVY, DEFINITE, lambda v: v / jnp.asarray(np.diag(DIAGONAL_HEAVY))),
            (CG, SPIKED, DEFINITE, linear.NystromPreconditioner(rank=10)),
            (MINRES, SPIKED, DEFINITE, LowRankPreconditioner(basis=Q[:, :6], values=SPIKES[:6], ridge=1.0)),
            (MINRES, INDEFINITE, "symmetric", DiagonalPreconditioner()),
            (GMRES, INDEFINITE, "symmetric", DiagonalPreconditioner()),
            (GMRES, NONSYMMETRIC, "general", DiagonalPreconditioner()),
            (BiCGStab, NONSYMMETRIC, "general", DiagonalPreconditioner()),
        ],
    )
    def test_fewer_products_same_answer(self, kind, a, structure, preconditioner):
        plain = run(solver_of(kind), structure, a, RHS)
        found = run(solver_of(kind, preconditioner=preconditioner), structure, a, RHS)
        assert status_of(found) == Status.CONVERGED
        bound = 1e-8 * np.sqrt(np.linalg.cond(a)) if structure == DEFINITE else 1e-6
        assert relative_error(found.value, np.linalg.solve(a, RHS)) < bound
        cost = preconditioner.matvecs(RHS) if isinstance(preconditioner, linear.Preconditioner) else 0
        assert int(found.matvecs) - cost < int(plain.matvecs) / 1.5
        x = np.asarray(found.value)
        rounding = 1e-14 * np.linalg.norm(a) * np.linalg.norm(x)
        np.testing.assert_allclose(found.residual, np.linalg.norm(a @ x - RHS), rtol=1e-3, atol=rounding)

    @pytest.mark.parametrize("kind", SOLVERS)
    @pytest.mark.parametrize(
        "preconditioner",
        [DiagonalPreconditioner(), linear.NystromPreconditioner(rank=7), lambda v: 2 * v],
        ids=["a", "b", "c"],
    )
    def test_products_are_counted(self, kind, preconditioner):
        calls = []

        def matvec(v):
            jax.debug.callback(lambda _: calls.append(1), v[0])
            return SPIKED @ v

        solver = solver_of(kind, preconditioner=preconditioner)
        found = jax.jit(lambda b: solver.solve(Operator(matvec, "positive_definite"), b))(RHS)
        jax.effects_barrier()
        assert len(calls) == int(found.matvecs)

    def test_recurrence_of_minres_is_the_true_residual(self):
        """One round is enough only if the residual of the recurrence, whose norm ends it, is the true one."""
        draw = np.random.default_rng(1)
        a, weights = draw.normal(size=(N, N)), jnp.asarray(np.exp(draw.normal(size=N)))
        operator, solver = Operator(lambda v: (a + a.T) @ v, "symmetric"), MINRES(preconditioner=lambda v: weights * v)
        solve = jax.jit(lambda tolerance: solver.solve(operator, RHS, None, tolerance))
        for rtol in (0.9, 0.8, 0.6, 1e-3):
            found = solve(rtol * np.linalg.norm(RHS))
            assert status_of(found) == Status.CONVERGED
            assert int(found.matvecs) == int(found.steps) + 3

    def test_lanes(self):
        solver = CG(preconditioner=DiagonalPreconditioner())
        lanes = np.stack([DIAGONAL_HEAVY, SPIKED]), np.stack([RHS, np.full(N, np.nan)])
        found = jax.vmap(functools.partial(run, solver, "positive_definite"))(*lanes)
        assert found.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]

    def test_block(self):
        solver = CG(preconditioner=linear.NystromPreconditioner(rank=10))
        b = rng.normal(size=(3, N))
        found = jax.jit(lambda b: solver.solve_block(lambda v: jnp.asarray(SPIKED) @ v, b))(b)
        assert found.status.tolist() == [Status.CONVERGED] * 3
        assert relative_error(found.value, np.linalg.solve(SPIKED, b.T).T) < 1e-8


@pytest.mark.parametrize(
    ("kind", "preconditioner"),
    [
        (CG, DiagonalPreconditioner(exact_below=0)),
        (CG, linear.NystromPreconditioner(rank=3)),
        *((kind, DiagonalPreconditioner()) for kind in SOLVERS),
    ],
)
def test_mixed_leaves_keep_their_precision(kind, preconditioner):
    b = {"low": jnp.ones(3, "float32"), "high": jnp.ones(2, "float64")}
    operator = Operator(lambda v: {"low": 2 * v["low"], "high": 4 * v["high"]}, "positive_definite")
    found = jax.jit(lambda b: kind(preconditioner=preconditioner).solve(operator, b))(b)
    assert status_of(found) == Status.CONVERGED
    assert (found.value["low"].dtype, found.value["high"].dtype) == ("float32", "float64")


class TestInverses:
    def test_exact_diagonal(self):
        np.testing.assert_allclose(built(DiagonalPreconditioner(), SPIKED), np.diag(1 / np.diag(SPIKED)), rtol=1e-10)

    def test_estimated_diagonal(self):
        """Exact on a diagonal matrix, for any signs; near on one that is nearly diagonal."""
        preconditioner = DiagonalPreconditioner(exact_below=0, probes=4)
        assert preconditioner.matvecs(RHS) == 4
        np.testing.assert_allclose(built(preconditioner, np.diag(SCALES)), np.diag(1 / SCALES), rtol=1e-10)
        near = np.diag(SCALES) + 1e-5 * (Q + Q.T)
        assert relative_error(built(preconditioner, near), np.diag(1 / np.diag(near))) < 0.1

    def test_entries_that_cannot_be_divided_by(self):
        a = np.diag(np.r_[0.0, np.nan, -2.0, 4.0])
        given = DiagonalPreconditioner(diagonal=np.diag(a))
        np.testing.assert_allclose(built(given, a), np.diag([0.25, 0.25, 0.5, 0.25]))

    def test_nystrom_of_low_rank(self):
        a = Q[:, :3] @ np.diag([4.0, 2.0, 1.0]) @ Q[:, :3].T
        expected = np.eye(N) - Q[:, :3] @ Q[:, :3].T
        expected = expected + Q[:, :3] @ np.diag(1.5 / (np.array([4.0, 2.0, 1.0]) + 0.5)) @ Q[:, :3].T
        np.testing.assert_allclose(built(linear.NystromPreconditioner(rank=3, ridge=0.5), a), expected, atol=1e-8)

    def test_nystrom_of_an_indefinite_matrix_is_the_identity(self):
        np.testing.assert_array_equal(built(linear.NystromPreconditioner(rank=N), -np.eye(N)), np.eye(N))

    def test_woodbury(self):
        basis, values = rng.normal(size=(N, 3)), np.array([3.0, 1.0, 0.0])
        found = built(LowRankPreconditioner(basis=basis, values=values, ridge=0.1), np.eye(N))
        np.testing.assert_allclose(found, np.linalg.inv(0.1 * np.eye(N) + basis @ np.diag(values) @ basis.T), rtol=1e-8)


class TestGarbage:
    def test_not_a_preconditioner(self):
        for kind in SOLVERS:
            with pytest.raises(TypeError, match=rf"linear\.{kind.__name__}: preconditioner must be one of bilevel"):
                kind(preconditioner="jacobi")

    def test_diagonal_of_another_shape(self):
        solver = CG(preconditioner=DiagonalPreconditioner(diagonal=jnp.ones(3)))
        with pytest.raises(
            ValueError, match=r"DiagonalPreconditioner\.diagonal must have the structure and shapes of b"
        ):
            solver.solve(lambda v: v, jnp.ones(4))

    def test_basis_of_another_shape(self):
        with pytest.raises(ValueError, match=r"basis must be \(n, r\) and values \(r,\), got \(3, 2\) and \(3,\)"):
            LowRankPreconditioner(basis=jnp.ones((3, 2)), values=jnp.ones(3), ridge=1.0)
        solver = CG(preconditioner=LowRankPreconditioner(basis=jnp.ones((3, 2)), values=jnp.ones(2), ridge=1.0))
        with pytest.raises(ValueError, match="a row for each of the 4 unknowns, got 3 rows"):
            solver.solve(lambda v: v, jnp.ones(4))

    def test_ridge(self):
        for make in (linear.NystromPreconditioner, functools.partial(LowRankPreconditioner, basis=0, values=0)):
            with pytest.raises(ValueError, match="ridge must be positive, got 0"):
                make(ridge=0.0)
