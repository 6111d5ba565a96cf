"""Run the conformance suite of the optimality conditions and write its table: python scripts/catalog.py

`tests/test_catalog.py` measures every row of `docs/catalog.md`. If a test fails, the page stays as it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, SUITE = ROOT / "docs" / "catalog.md", "tests/test_catalog.py"
INTRODUCTION = """\
# Catalog of optimality conditions

This page lists every condition of `bilevel.optimality` and how accurate its derivatives are. Each condition is differentiated by
`bilevel.custom_root(bilevel.optimality.bind(problem))` and compared with independent oracles in double precision. A run of
`tests/test_catalog.py` writes the page:

```
python scripts/catalog.py
```

The problems, with at least 20 unknowns each, and the oracles are in `tests/catalog/`.

## Conditions

A is ∂₁F, the derivative of the condition F with respect to `params`, as a matrix. f is the inner loss and η a step size. A
problem that names no condition implies `Stationary`, `ProximalGradient`, `ProjectedGradient`, `KKT`, `Conic` or, for a fixed
point, `Custom`.

| condition | F | A | linear system that is solved | differentiable where |
|---|---|---|---|---|
| `Stationary` | ∇f | symmetric, positive definite | A | A is invertible; with `singular=True`, along the range of A |
| `LeastSquares` | Jᵀr, J = ∂₁r | symmetric, positive definite | A, or JᵀJ with `hessian="gauss_newton"` | A is invertible |
| `NewtonStep` | (∂₁G)⁻¹G | the identity | none: A is the identity | ∂₁G is invertible |
| `Custom` | F as given | general | A | A is invertible |
| `ProximalGradient` | (x − prox(x − η∇f))/η | nonsymmetric | symmetric, on the support, if the prox is separable; otherwise A | \
no coordinate is at a kink of the prox |
| `BlockProximalGradient` | as above, with one η per block | nonsymmetric | as above | as above |
| `ProjectedGradient` | (x − proj(x − η∇f))/η | nonsymmetric | symmetric, on the active face, if the set is polyhedral; \
otherwise A | strict complementarity holds |
| `MirrorStep` | (x − proj_φ(∇φ(x) − η∇f))/η | nonsymmetric | symmetric, on the support, for the entropy; otherwise A | \
strict complementarity holds |
| `ConvexHull` | as `ProjectedGradient`, for the weights p of x = Vp | nonsymmetric | symmetric, on the active face | \
strict complementarity holds |
| `KKT` | [∇f + ∂Hᵀν + ∂Gᵀλ; H; λG], with the constraints H = 0, G ≤ 0 | nonsymmetric | symmetric, indefinite, on the active \
constraints | strict complementarity holds and active constraints are independent |
| `QuadraticProgram` | as above | nonsymmetric | as above | as above |
| `Conic` | the residual of the homogeneous embedding | nonsymmetric, singular | general, with the scale of the embedding held \
fixed | the solution is unique and strictly complementary |

## Columns

- **oracle**: the source of the expected derivative. A closed form is differentiated exactly. Differences are central
  differences of an independent solver with two Richardson extrapolations, along three random directions in all
  hyperparameters; the test asserts that the active set does not change. diffcp differentiates the residual map at its own
  answer.
- **mode**: how bilevel computed the derivative. `jvp` and `vjp` are those of the decorated solver, in eager mode or under
  `jit`; `jacfwd` and `jacrev` are whole Jacobians; `root_jvp` and `root_vjp` are the functions of that name; `hypergradient`
  is `bilevel.hypergrad.Implicit`.
- **bound**: the error that the test allows: 0.00000001 against a closed form, 0.00001 for semidefinite and exponential cones,
  and 0.000001 otherwise.
- **relative error**: ‖found − expected‖/‖expected‖ over three directions; for a solution with several parts, such as a primal
  point and multipliers, the largest over the parts. In reverse mode it compares whole gradients for three cotangents if the
  oracle has them, and otherwise their nine inner products with the directions.

## Errors

| condition | problem | oracle | mode | bound | relative error |
|---|---|---|---|---|---|
"""


def measure(folder: str) -> int:
    """Run the suite, which writes a file for each entry into the folder, and return its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", f"{SUITE}::test_derivatives_agree_with_independent_oracles"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"BILEVEL_CATALOG": folder}, check=False).returncode


def main() -> int:
    """Write the page, unless a test failed."""
    with tempfile.TemporaryDirectory() as folder:
        failed = measure(folder)
        rows = [row for path in sorted(Path(folder).glob("*.json")) for row in json.loads(path.read_text())]
    if failed:
        print("docs/catalog.md is unchanged, because the suite failed")
        return failed
    PAGE.write_text(INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    print(f"{len(rows)} rows in {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
