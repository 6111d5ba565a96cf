"""Run folders, trackers and the console."""

from bilevel.io._folder import Run, RunFolder, load, plain

__all__ = ["Run", "RunFolder", "load", "plain"]
