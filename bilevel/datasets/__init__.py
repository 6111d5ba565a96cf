"""Data: scikit-learn's bundled sets by name, `.npz` and `.csv` files by path, OpenML, made data; and one split discipline."""

from bilevel.datasets._sources import DataError, Table, TablePath, load_table, make_classification, make_images
from bilevel.datasets._splits import Split, join, part_with, scale_pixels, split_rows, standardize

__all__ = [
    "DataError",
    "Split",
    "Table",
    "TablePath",
    "join",
    "load_table",
    "make_classification",
    "make_images",
    "part_with",
    "scale_pixels",
    "split_rows",
    "standardize",
]
