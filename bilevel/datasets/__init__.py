"""Data: scikit-learn's bundled sets by name, `.npz` files by path, made data; and one split discipline."""

from bilevel.datasets._sources import DataError, NpzPath, Table, load_table, make_classification
from bilevel.datasets._splits import Split, part_with, split_rows, standardize

__all__ = [
    "DataError",
    "NpzPath",
    "Split",
    "Table",
    "load_table",
    "make_classification",
    "part_with",
    "split_rows",
    "standardize",
]
