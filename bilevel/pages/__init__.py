"""A run or a sweep as one HTML page that needs no network and no other file."""

from pathlib import Path

from bilevel.pages import _run, _sweep
from bilevel.runs import sweeps

__all__ = ["page_of"]


def page_of(folder: Path) -> str:
    """The page of a run folder or of a sweep's folder. Raises FileNotFoundError if the folder is neither."""
    return _sweep.page(folder) if sweeps.is_sweep(folder) else _run.page(folder)
