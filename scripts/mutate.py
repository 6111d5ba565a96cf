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
    ("bilevel/implicit/_root.py", "return pull_args(_tree.scale(-1, u))", "return pull_args(u)", IMPLICIT),
    ("bilevel/implicit/_root.py", 'push_x, _tree.scale(-1, rhs), "nan")', 'push_x, rhs, "nan")', IMPLICIT),
    (
        "bilevel/implicit/_root.py",
        "u = solve_system(solver, lambda v: pull_x(v)[0], cotangent",
        "u = solve_system(solver, jax.linearize(lambda x: optimality_fun(x, *args), sol)[1], cotangent",
        IMPLICIT,
    ),
    (
        "bilevel/linear/_base.py",
        "        transpose_solve=solve,\n        symmetric=operator.structure",
        "        transpose_solve=lambda _, b: solve(operator.matvec, b),\n        symmetric=operator.structure",
        IMPLICIT,
    ),
    (
        "bilevel/implicit/_root.py",
        "lambda x: _tree.cast_like(converted(x, *closed_over), x)",
        "lambda x: -_tree.cast_like(converted(x, *_stop(closed_over)), x)",
        IMPLICIT,
    ),
    ("bilevel/implicit/_root.py", "return value, (jnp.nan * total)", "return value, (0 * total)", IMPLICIT),
    (
        "bilevel/hypergrad/_implicit.py",
        "grad=_tree.sub(direct, pull(found.value)[0])",
        "grad=_tree.sub(pull(found.value)[0], direct)",
        HYPERGRAD,
    ),
    (
        "bilevel/hypergrad/_implicit.py",
        "grad=_tree.sub(direct, pull(found.value)[0])",
        "grad=_tree.scale(-1, pull(found.value)[0])",
        HYPERGRAD,
    ),
    (
        "bilevel/optimality/_gradient_mapping.py",
        "step.astype(s.dtype) * (w - h), s, w, hvp(s))",
        "step.astype(s.dtype) * (w + h), s, w, hvp(s))",
        HYPERGRAD,
    ),
    (
        "bilevel/optimality/_base.py",
        "AdjointSystem(Operator(lambda v: pull(v)[0]))",
        "AdjointSystem(Operator(jax.linearize(lambda x: self.residual(problem, x, hparams, data), params)[1]))",
        HYPERGRAD,
    ),
    (
        "bilevel/linear/_cg.py",
        "jnp.where(curvature > 0, Status.MAX_STEPS, Status.NEGATIVE_CURVATURE)",
        "jnp.int32(Status.MAX_STEPS)",
        LINEAR,
    ),
    ("bilevel/linear/_direct.py", "jnp.linalg.solve(rows.T, flat)", "jnp.linalg.solve(rows, flat)", LINEAR),
    (
        "bilevel/linear/_base.py",
        "residual = _tree.norm(_tree.sub(operator.matvec(found.value), b))",
        "residual = tolerance",
        LINEAR,
    ),
]


def survives(path: str, original: str, mutant: str, tests: str) -> bool:
    """Whether the tests still pass with the mutation in place."""
    file = ROOT / path
    source = file.read_text(encoding="utf-8")
    if source.count(original) != 1:
        sys.exit(f"{path}: {original!r} stands there {source.count(original)} times: update this script")
    try:
        file.write_text(source.replace(original, mutant), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", tests]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    finally:
        file.write_text(source, encoding="utf-8")


def main() -> None:
    """Try every mutation; exit 1 if one goes unnoticed."""
    unnoticed = 0
    for path, original, mutant, tests in MUTATIONS:
        alive = survives(path, original, mutant, tests)
        unnoticed += alive
        print(
            f"{'UNNOTICED' if alive else 'noticed  '} {path}: {original.strip()[:60]!r} → {mutant.strip()[:60]!r}",
            flush=True,
        )
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
