"""Write a run or a sweep as one HTML page: `python -m bilevel.report FOLDER`."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from bilevel import _explain


def main() -> None:
    """Entry point; exit codes as of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, or the folder of a sweep")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    given = parser.parse_args()
    try:
        print(write(given.folder))
    except Exception as error:
        message, code = _explain.explain(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
    if given.open:
        webbrowser.open((given.folder / "report.html").resolve().as_uri())


def write(folder: Path) -> Path:
    """Write `report.html` into a folder, and return its path."""
    from bilevel import pages
    from bilevel.runs import write_text

    path = folder / "report.html"
    write_text(path, pages.page_of(folder))
    return path


if __name__ == "__main__":
    main()
