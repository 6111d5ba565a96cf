"""Tables from scikit-learn, files, OpenML or arrays, and how they are split and scaled."""

from bilevel.datasets._sources import TablePath, load_table, make_classification, make_images
from bilevel.datasets._splits import Split, join, part_with, scale_pixels, split_rows, standardize, standardize_targets
from bilevel.datasets._table import DataError, Table, require_shape

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
    "require_shape",
    "scale_pixels",
    "split_rows",
    "standardize",
    "standardize_targets",
]
