"""Write an HTML report of a run or a sweep: `python -m bilevel.report FOLDER`."""

import argparse
import webbrowser
from pathlib import Path

from bilevel import _explain


def main() -> None:
    """Entry point, with the exit codes of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, or the folder of a sweep")
    parser.add_argument("--open", action="store_true", help="open the report in the browser")
    given = parser.parse_args()
    with _explain.errors_in_a_sentence():
        path = write(given.folder)
    print(path)
    if given.open:
        webbrowser.open(path.resolve().as_uri())


def write(folder: Path) -> Path:
    """Write `report.html` into a folder, and return its path."""
    from bilevel import pages
    from bilevel.runs import write_text

    path = folder / "report.html"
    write_text(path, pages.page_of(folder))
    return path


if __name__ == "__main__":
    main()
