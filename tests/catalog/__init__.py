"""The conformance catalog of `bilevel.optimality`: every condition against independent oracles.

`scripts/catalog.py` runs `tests/test_catalog.py` and writes what it measured to `docs/catalog.md`.
"""

from catalog import conic, constrained, projected, proximal, smooth

ENTRIES = [*smooth.ENTRIES, *proximal.ENTRIES, *projected.ENTRIES, *constrained.ENTRIES, *conic.ENTRIES]
