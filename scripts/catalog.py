"""Run the conformance suite and write its table: python scripts/catalog.py

Every row of `docs/catalog.md` is measured by `tests/test_catalog.py`.
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

Every condition of `bilevel.optimality`, differentiated by `bilevel.custom_root(bilevel.optimality.bind(problem))` and compared
with independent oracles in double precision. Written by a run of `tests/test_catalog.py`:

```
python scripts/catalog.py
```

The problems, with at least 20 unknowns each, and the oracles are in `tests/catalog/`.

## Conditions

Here A is ∂₁F, the derivative of the condition F in `params`, as a matrix. f is the inner loss, H its Hessian, η a step.

| condition | F | A | solved as | differentiable where |
|---|---|---|---|---|
| `Stationary` | ∇f | symmetric, positive definite | itself | A is invertible; with `singular`, along its range |
| `LeastSquares` | Jᵀr, J = ∂₁r | symmetric, positive definite | itself, or JᵀJ | A is invertible |
| `NewtonStep` | (∂₁G)⁻¹G | the identity | nothing is left to solve | ∂₁G is invertible |
| `Custom` | as given | general | itself | A is invertible |
| `ProximalGradient` | (x − prox(x − η∇f))/η | nonsymmetric | symmetric on the support if separable, else itself | \
no coordinate is at a kink of the prox |
| `BlockProximalGradient` | the same with η per block | nonsymmetric | the same | the same |
| `ProjectedGradient` | (x − proj(x − η∇f))/η | nonsymmetric | symmetric on the active face if polyhedral, else itself | \
complementarity is strict |
| `MirrorStep` | (x − proj_φ(∇φ(x) − η∇f))/η | nonsymmetric | symmetric on the support for the entropy, else itself | \
complementarity is strict |
| `ConvexHull` | that of `ProjectedGradient` for the weights p of x = Vp | nonsymmetric | symmetric on the active face | \
complementarity is strict |
| `KKT` | [∇f + ∂Hᵀν + ∂Gᵀλ; H; λG], H and G the constraints | nonsymmetric | symmetric, indefinite, on the active constraints | \
complementarity is strict, active constraints are independent |
| `QuadraticProgram` | the same | nonsymmetric | the same | the same |
| `Conic` | the residual of the homogeneous embedding | nonsymmetric, singular | general, with its scale held | \
the solution is unique and strictly complementary |

## Columns

- oracle: where the expected derivative comes from. A closed form is differentiated exactly. Differences are central, with two
  Richardson extrapolations, of an independent solver along three random directions in all hyperparameters; the active set is
  asserted to stay as it is. diffcp differentiates the residual map of its own answer.
- mode: how bilevel was asked: `jvp` and `vjp` of the decorated solver, in eager mode or under `jit`; whole Jacobians by `jacfwd`
  and `jacrev`; `root_jvp` and `root_vjp`; `hypergradient`, by `bilevel.hypergrad.Implicit`.
- bound: what the test suite asserts: 0.00000001 against a closed form, 0.000001 otherwise, 0.00001 for semidefinite and
  exponential cones.
- relative error: ‖found − expected‖/‖expected‖ over three directions, the largest over the parts of a solution (say primal and
  multipliers). In reverse mode: of the whole gradients for three cotangents where the oracle has them, otherwise of their nine
  inner products with the directions.

## Errors

| condition | problem | oracle | mode | bound | relative error |
|---|---|---|---|---|---|
"""


def measure(folder: str) -> int:
    """Run the suite, which leaves a file for each entry in the folder."""
    command = [sys.executable, "-m", "pytest", "-q", f"{SUITE}::test_derivatives_agree_with_independent_oracles"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"BILEVEL_CATALOG": folder}, check=False).returncode


def main() -> int:
    """Write the page, unless an entry failed."""
    with tempfile.TemporaryDirectory() as folder:
        failed = measure(folder)
        rows = [row for path in sorted(Path(folder).glob("*.json")) for row in json.loads(path.read_text())]
    if failed:
        print("docs/catalog.md is left as it was: the suite failed")
        return failed
    PAGE.write_text(INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    print(f"{len(rows)} rows in {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
