"""Break the engine on purpose, one line at a time, and see that the tests notice: python scripts/mutate.py

Each mutation is a sign flipped, a transpose dropped or a check removed. The files are restored whatever happens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_NO_TESTS = 5  # pytest's exit code
ROOT = Path(__file__).resolve().parents[1]
IMPLICIT = "tests/test_implicit.py"
HYPERGRAD = "tests/test_hypergrad.py"
LINEAR = "tests/test_linear.py"
OPTIMALITY = "tests/test_optimality.py"
CATALOG = "tests/test_catalog.py"
INNER = "tests/test_inner.py"
MATRIX = "tests/test_inner_matrix.py"
STRUCTURE = "tests/test_inner_structure.py"
CURVATURE = "tests/test_inner_curvature.py"
RESUME = "tests/test_resume.py"
ALGORITHMS = "tests/test_algorithms.py"
PROBLEM = "tests/test_problem.py"
MUTATIONS = [
    (
        "bilevel/linear/_system.py",
        "status = jnp.where(end.norm <= tolerance, Status.CONVERGED, status)",
        "status = jnp.where(end.status == Status.CONVERGED, Status.CONVERGED, status)",
        "tests/test_linear_structure.py",
        "misdeclared",
    ),
    (
        "bilevel/inner/_agreement.py",
        "if not comparison.disagreement <= allowed:",
        "if False:",
        PROBLEM,
        "contradiction",
    ),
    (
        "bilevel/inner/_agreement.py",
        "return _tree.norm(_tree.sub(zeta, combined(multipliers))) + violation / s",
        "return violation / s",
        PROBLEM,
        "contradiction",
    ),
    (
        "bilevel/problem.py",
        "        for statement in self.further_statements():",
        "        for statement in []:",
        PROBLEM,
        "replaced",
    ),
    (
        "bilevel/outer/_progress.py",
        "bound = loss + (abs(error) if known else 0.0)",
        "bound = loss",
        ALGORITHMS,
        "best_step",
    ),
    ("bilevel/outer/_progress.py", "trusted = known or not failed", "trusted = not failed", ALGORITHMS, "best_step"),
    ("bilevel/outer/_progress.py", "and not (intended and", "and not (False and", ALGORITHMS, "truncated"),
    ("bilevel/_compiled.py", "self._each(function.__closure__ or ()),", "(),", ALGORITHMS, "compiled_once"),
    (
        "bilevel/outer/_loop.py",
        "done.failures, done.history[: done.steps]",
        "done.failures, done.history",
        RESUME,
        "its_progress",
    ),
    ("bilevel/outer/_loop.py", "perf_counter() - done.seconds, set()", "perf_counter(), set()", RESUME, "its_progress"),
    ("bilevel/cli/_task.py", "session.files.keep_rows(step)", "session.files.keep_rows(step + 1)", RESUME, "truncated"),
    ("bilevel/runs/checkpoints.py", "if rows < step:", "if rows < 0:", RESUME, "counts_on"),
    ("bilevel/runs/checkpoints.py", '!= manifest["sha256"]', "== None", RESUME, "wrong_bit"),
    ("bilevel/config.py", 'not in (*NEUTRAL, "resume", "hydra")}', 'not in ("resume", "hydra")}', RESUME, "more_steps"),
    (
        "bilevel/pages/_html.py",
        "else html.escape(str(child))",
        "else str(child)",
        "tests/test_report.py",
        "escaped",
    ),
    (
        "bilevel/runs/_rows.py",
        "                os.ftruncate(self._file, before)\n",
        "",
        "tests/test_bad_input.py",
        "no_half_row",
    ),
    ("bilevel/implicit/_root.py", "return pull_args(_tree.scale(-1, u))", "return pull_args(u)", IMPLICIT, "root_vjp"),
    (
        "bilevel/implicit/_root.py",
        "linear.Operator(push_x), _tree.scale(-1, rhs)",
        "linear.Operator(push_x), rhs",
        IMPLICIT,
        "root_jvp",
    ),
    (
        "bilevel/implicit/_root.py",
        "operator = linear.Operator(lambda v: pull_x(v)[0])",
        "operator = linear.Operator(jax.linearize(lambda x: optimality_fun(x, *args), sol)[1])",
        IMPLICIT,
        "root_vjp",
    ),
    (
        "bilevel/linear/_differentiable.py",
        "transpose_solve=lambda matvec, b: solved(matvec, b, not transposed)",
        "transpose_solve=lambda _, b: solved(operator.matvec, b, not transposed)",
        IMPLICIT,
        "nonsymmetric_root_matches_unrolling",
    ),
    (
        "bilevel/implicit/_root.py",
        "lambda x: _tree.cast_like(converted(x, *closed_over), x)",
        "lambda x: -_tree.cast_like(converted(x, *_stop(closed_over)), x)",
        IMPLICIT,
        "closed_form and jacfwd",
    ),
    (
        "bilevel/_tree.py",
        "return value, jnp.full_like(value, jnp.nan) * total",
        "return value, jnp.zeros_like(value) * total",
        IMPLICIT,
        "aux_is_returned",
    ),
    (
        "bilevel/hypergrad/_implicit.py",
        "grad=_tree.sub(direct, pull(found.value)[0])",
        "grad=_tree.sub(pull(found.value)[0], direct)",
        HYPERGRAD,
        "closed_form",
    ),
    (
        "bilevel/hypergrad/_implicit.py",
        "grad=_tree.sub(direct, pull(found.value)[0])",
        "grad=_tree.scale(-1, pull(found.value)[0])",
        HYPERGRAD,
        "outer_loss_and_in",
    ),
    (
        "bilevel/optimality/_active.py",
        "return _tree.add_scaled(scaled(b), 1, p.root(t))",
        "return _tree.add_scaled(scaled(b), -1, p.root(t))",
        OPTIMALITY,
        "test_lasso",
    ),
    (
        "bilevel/optimality/_active.py",
        "return p.root(_tree.sub(b, at.hvp(scaled(b))))",
        "return p.root(_tree.add_scaled(b, 1, at.hvp(scaled(b))))",
        CATALOG,
        "oracles and ProjectedGradient",
    ),
    (
        "bilevel/optimality/_active.py",
        "(gather(b) - rows(",
        "(gather(b) + rows(",
        OPTIMALITY,
        "test_lasso",
    ),
    (
        "bilevel/optimality/_mirror.py",
        "return project(_tree.sub(jax.tree.map(jnp.multiply, inverse, b), hvp(row_sums(b))))",
        "return project(_tree.add_scaled(jax.tree.map(jnp.multiply, inverse, b), 1, hvp(row_sums(b))))",
        OPTIMALITY,
        "symmetric_form_of_mirror",
    ),
    (
        "bilevel/optimality/_mirror.py",
        "m / jnp.where(m > 0, x, 1)",
        "m",
        OPTIMALITY,
        "mirror_descent",
    ),
    (
        "bilevel/optimality/_kkt.py",
        "a * y - s * lam * mz",
        "a * y + s * lam * mz",
        OPTIMALITY,
        "symmetric_form_of_kkt",
    ),
    (
        "bilevel/optimality/_kkt.py",
        "times(by_dual, b.dual_ineq))",
        "times(active, b.dual_ineq))",
        CATALOG,
        "oracles and (KKT or QuadraticProgram)",
    ),
    (
        "bilevel/optimality/_conic.py",
        "v - moved - e @ u",
        "v - moved + e @ u",
        CATALOG,
        "oracles and Conic",
    ),
    (
        "bilevel/linear/_system.py",
        "norm = _tree.norm(residual).astype(tolerance.dtype)",
        "norm = found.residual.astype(tolerance.dtype)",
        "tests/test_linear_structure.py",
        "misdeclared and groups",
    ),
    (
        "bilevel/linear/_system.py",
        "operator = operator.transpose(_zeros(like))",
        "pass",
        CATALOG,
        "oracles and Conic",
    ),
    (
        "bilevel/linear/_differentiable.py",
        "found = (system.solve_transposed if transposed else system.solve)(solver, b)",
        "found = system.solve(solver, b)",
        CATALOG,
        "oracles and Conic",
    ),
    (
        "bilevel/linear/_base.py",
        "return dataclasses.replace(self, matvec=lambda v: transposed(v)[0])",
        "return self",
        CATALOG,
        "oracles and (Custom or Newton)",
    ),
    (
        "bilevel/optimality/_kkt.py",
        "s * (b - lam * mz)",
        "s * (b + lam * mz)",
        OPTIMALITY,
        "symmetric_form_of_kkt",
    ),
    (
        "bilevel/diagnostics/_optimality.py",
        "jnp.abs(_tree.vdot(cotangent, moving) - _tree.vdot(pulled, direction))",
        "jnp.abs(_tree.vdot(cotangent, moving) - _tree.vdot(cotangent, moving))",
        "tests/test_diagnostics.py",
        "wrong_linear_solver",
    ),
    (
        "bilevel/linear/_cg.py",
        "jnp.where(curvature > 0, Status.MAX_STEPS, Status.NEGATIVE_CURVATURE)",
        "jnp.int32(Status.MAX_STEPS)",
        LINEAR,
        "indefinite or curvature",
    ),
    (
        "bilevel/linear/_direct.py",
        "](rows.T, operator",
        "](rows, operator",
        LINEAR,
        "nonsymmetric",
    ),
    (
        "bilevel/linear/_base.py",
        "residual = _tree.norm(_tree.sub(operator.matvec(found.value), b))",
        "residual = tolerance",
        LINEAR,
        "residual",
    ),
    (
        "bilevel/inner/linear_models/_blocks.py",
        '"gradient_of": lambda prediction, j: columns[j] @ slope',
        '"gradient_of": lambda prediction, j: -columns[j] @ slope',
        MATRIX,
        "BlockCoordinateDescent and lasso",
    ),
    (
        "bilevel/inner/linear_models/_blocks.py",
        "image + _outer(program.Q[j], delta)",
        "image",
        MATRIX,
        "BlockCoordinateDescent and nnls",
    ),
    (
        "bilevel/inner/linear_models/_block_coordinate.py",
        "_State(pushed + still(new - pushed)",
        "_State(still(new)",
        INNER,
        "unrolled and BlockCoordinateDescent",
    ),
    (
        "bilevel/inner/second_order/_semismooth.py",
        "candidate = _tree.sub(x, found.value)",
        "candidate = _tree.add_scaled(x, 1, found.value)",
        CURVATURE,
        "as_fast_as",
    ),
    (
        "bilevel/inner/linear_models/_ridge.py",
        "return direct - scaled.T",
        "return direct + scaled.T",
        STRUCTURE,
        "ridge_is_the_closed_form",
    ),
    (
        "bilevel/inner/linear_models/_ridge.py",
        "(rest / penalty if thin else 0)",
        "0",
        STRUCTURE,
        "ridge_is_the_closed_form",
    ),
    (
        "bilevel/inner/first_order/_fixed_point.py",
        "ridge), -changes @ moves[0])",
        "ridge), changes @ moves[0])",
        CURVATURE,
        "as_fast_as",
    ),
    (
        "bilevel/inner/first_order/_optax.py",
        "correction = _tree.sub(full_gradient, jax.grad(loss)(anchor))",
        "correction = _tree.zeros_like(full_gradient)",
        STRUCTURE,
        "variance_reduction_converges",
    ),
    (
        "bilevel/inner/_lanes.py",
        "place = unfinished if place is None else place[unfinished]",
        "place = unfinished",
        INNER,
        "lanes or hard_lane",
    ),
    (
        "bilevel/inner/_judge.py",
        "_relative(jax.tree.map(jnp.sum, gap)",
        "_relative(jax.tree.map(lambda g: 0 * jnp.sum(g), gap)",
        "tests/test_inner_programs.py",
        "complementar",
    ),
    (
        "bilevel/hypergrad/_implicit.py",
        "solver = self.linear.preconditioned(solution.inverse) if self.precondition else self.linear",
        "solver = self.linear",
        STRUCTURE,
        "precondition or exact_inverse",
    ),
    (
        "bilevel/statements/_linear_model.py",
        "weight = self.weight(data) * targets.shape[0] / index.shape[0]",
        "weight = self.weight(data)",
        STRUCTURE,
        "minibatches_average",
    ),
    (
        "bilevel/inner/first_order/_mirror.py",
        "jnp.where(jnp.isfinite(y), jnp.maximum(x, jnp.finfo(x.dtype).tiny), x)",
        "x",
        CURVATURE,
        "too_small_for_the_precision",
    ),
    (
        "bilevel/optimality/_mirror.py",
        "jnp.maximum(step.astype(x.dtype) * slack, negligible)",
        "jnp.maximum(step.astype(x.dtype) * slack, 0)",
        OPTIMALITY,
        "nearly_zero",
    ),
    (
        "bilevel/tasks/molecular_dynamics.py",
        "ratio * (1 - ratio), 0)) / (4 *",
        "ratio * (1 - ratio), 0)) / (2 *",
        "tests/test_molecular_dynamics.py",
        "pressure_is",
    ),
    (
        "bilevel/tasks/molecular_dynamics.py",
        "return along_log / jnp.exp(hparams)",
        "return along_log",
        "tests/test_molecular_dynamics.py",
        "moves_of_the_relaxed",
    ),
    (
        "bilevel/tasks/data_cleaning.py",
        "jnp.mean(jax.nn.sigmoid(hparams) * losses)",
        "jnp.mean(losses) + 0 * hparams.sum()",
        "tests/test_data_cleaning.py",
        "scikit_learn or differences",
    ),
    (
        "bilevel/tasks/deq.py",
        "jnp.minimum(1, norm / jnp.linalg.norm(matrix, 2))",
        "(norm / jnp.linalg.norm(matrix, 2))",
        "tests/test_networks.py",
        "bounded or at_rest or comes_to_rest",
    ),
]


def survives(path: str, original: str, mutant: str, tests: str, keyword: str) -> bool:
    """Whether the tests selected by keyword fail to fail with the mutation in place."""
    file = ROOT / path
    source = file.read_text(encoding="utf-8")
    if source.count(original) != 1:
        sys.exit(f"{path}: {original!r} stands there {source.count(original)} times: update this script")
    try:
        file.write_text(source.replace(original, mutant), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--no-header",
            "-n0",
            "-p",
            "no:cacheprovider",
            "-m",
            "",
            tests,
            "-k",
            keyword,
        ]
        code = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode
        if code == _NO_TESTS:
            sys.exit(f"{tests}: no test matches {keyword!r}: update this script")
        return code != 1
    finally:
        file.write_text(source, encoding="utf-8")


def main() -> None:
    """Try every mutation; exit 1 if one goes unnoticed."""
    unnoticed = 0
    for path, original, mutant, tests, keyword in MUTATIONS:
        alive = survives(path, original, mutant, tests, keyword)
        unnoticed += alive
        print(
            f"{'UNNOTICED' if alive else 'noticed  '} {path}: {original.strip()[:60]!r} → {mutant.strip()[:60]!r}",
            flush=True,
        )
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
