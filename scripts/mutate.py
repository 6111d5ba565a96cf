"""Break the engine on purpose, one line at a time, and check that the tests notice: python scripts/mutate.py

Each mutation in `mutations.toml` flips a sign, drops a transpose or removes a check. The files are restored in any case.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-n0", "-p", "no:cacheprovider", "-m", "")
_NO_TESTS = 5  # pytest's exit code


def survives(path: str, text: str, mutant: str, tests: str) -> bool:
    """Whether the selected tests pass with the mutation in place.

    Args:
      path: a file, relative to the root of the repository.
      text: a part of it that occurs once.
      mutant: the replacement.
      tests: arguments of pytest.
    """
    file = ROOT / path
    source = file.read_text(encoding="utf-8")
    if source.count(text) != 1:
        sys.exit(f"{path}: {text!r} occurs {source.count(text)} times: update scripts/mutations.toml")
    try:
        file.write_text(source.replace(text, mutant), encoding="utf-8")
        code = subprocess.run([*PYTEST, *shlex.split(tests)], cwd=ROOT, capture_output=True, check=False).returncode
    finally:
        file.write_text(source, encoding="utf-8")
    if code == _NO_TESTS:
        sys.exit(f"{tests}: no such test: update scripts/mutations.toml")
    return code != 1


def main() -> None:
    """Try every mutation; exit 1 if one goes unnoticed."""
    unnoticed = 0
    for path, mutations in tomllib.loads((ROOT / "scripts/mutations.toml").read_text(encoding="utf-8")).items():
        for mutation in mutations:
            alive = survives(path, **mutation)
            unnoticed += alive
            text, mutant = (mutation[key].strip()[:60] for key in ("text", "mutant"))
            print(f"{'UNNOTICED' if alive else 'noticed  '} {path}: {text!r} → {mutant!r}", flush=True)
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
