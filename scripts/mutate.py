"""Break the engine on purpose, one line at a time, and see that the tests notice: python scripts/mutate.py

Each mutation is a sign flipped, a transpose dropped or a check removed. The files are restored whatever happens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPLICIT = "tests/test_implicit.py"
HYPERGRAD = "tests/test_hypergrad.py"
LINEAR = "tests/test_linear.py"
MUTATIONS = [
    ("bilevel/implicit/_root.py", "return pull_args(_tree.scale(-1, u))", "return pull_args(u)", IMPLICIT, "root_vjp"),
    ("bilevel/implicit/_root.py", 'push_x, _tree.scale(-1, rhs), "nan")', 'push_x, rhs, "nan")', IMPLICIT, "root_jvp"),
    (
        "bilevel/implicit/_root.py",
        "u = solve_system(solver, lambda v: pull_x(v)[0], cotangent",
        "u = solve_system(solver, jax.linearize(lambda x: optimality_fun(x, *args), sol)[1], cotangent",
        IMPLICIT,
        "root_vjp",
    ),
    (
        "bilevel/linear/_base.py",
        "        transpose_solve=solve,\n        symmetric=operator.structure",
        "        transpose_solve=lambda _, b: solve(operator.matvec, b),\n        symmetric=operator.structure",
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
        "bilevel/implicit/_root.py",
        "return value, (jnp.nan * total)",
        "return value, (0 * total)",
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
        "bilevel/optimality/_gradient_mapping.py",
        "step.astype(s.dtype) * (w - h), s, w, hvp(s))",
        "step.astype(s.dtype) * (w + h), s, w, hvp(s))",
        HYPERGRAD,
        "active_system",
    ),
    (
        "bilevel/optimality/_base.py",
        "AdjointSystem(Operator(lambda v: pull(v)[0]))",
        "AdjointSystem(Operator(jax.linearize(lambda x: self.residual(problem, x, hparams, data), params)[1]))",
        HYPERGRAD,
        "active_system",
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
        "jnp.linalg.solve(rows.T, flat)",
        "jnp.linalg.solve(rows, flat)",
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
            tests,
            "-k",
            keyword,
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 1
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
