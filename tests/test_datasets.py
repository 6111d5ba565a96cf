"""Tables: where they come from, how they are refused, how they are split and scaled."""

import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
from sklearn.utils import Bunch

from bilevel.datasets import DataError, Table, load_table, make_classification, part_with, split_rows, standardize

GRAVIER = Path(__file__).parents[1].parent / "shared/data/gravier.npz"
X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 0, 1])


def saved(folder, **arrays):
    path = folder / "table.npz"
    np.savez(path, **arrays)
    return str(path)


def refused(source, problem, kind="classification"):
    """DataError that names the source and then the problem."""
    with pytest.raises(DataError, match=f"(?s){re.escape(source)}.*{problem}"):
        load_table(source, kind)


def table(rows=30, classes=0):
    features = np.random.default_rng(0).normal(size=(rows, 3))
    targets = np.arange(rows) % classes if classes else np.arange(rows) / 10
    return Table("made", np.c_[np.arange(rows), features], targets, classes)


def rows_of(split):
    return [part.features[:, 0].astype(int).tolist() for part in split]


class TestBundled:
    def test_shapes_types_and_classes(self):
        for name, shape, classes in (
            ("breast_cancer", (569, 30), 2),
            ("digits", (1797, 64), 10),
            ("iris", (150, 4), 3),
            ("wine", (178, 13), 3),
            ("diabetes", (442, 10), 0),
        ):
            found = load_table(name, "classification" if classes else "regression")
            assert (found.name, found.classes) == (name, classes)
            assert (found.features.shape, found.features.dtype) == (shape, np.float64)
            assert (found.targets.shape, found.targets.dtype) == (shape[:1], np.int64 if classes else np.float64)
            assert not classes or np.unique(found.targets).tolist() == list(range(classes))

    def test_unknown_name(self):
        for kind in ("regression", "classification"):
            refused("irish", "use one of .*, or the path of an .npz or .csv file", kind)
        refused("iris", "use one of diabetes,", "regression")
        refused("diabetes", "use one of breast_cancer, digits, iris, wine,", "classification")


class TestFile:
    def test_classification(self, tmp_path):
        path = saved(tmp_path, X=X.astype("float32"), y=np.array([7, 3, 7, 3, 9, 3]))
        found = load_table(path, "classification")
        assert (found.name, found.classes) == (path, 3)
        assert found.features.dtype == np.float64
        assert np.array_equal(found.features, X)
        assert found.targets.tolist() == [1, 0, 1, 0, 2, 0]
        assert found.targets.dtype == np.int64

    def test_labels_may_be_words_or_whole_floats(self, tmp_path):
        words = load_table(saved(tmp_path, X=X, y=np.array(["b", "a"] * 3)), "classification")
        assert words.targets.tolist() == [1, 0] * 3
        floats = load_table(saved(tmp_path, X=X, y=np.array([-1.0, 1.0] * 3)), "classification")
        assert floats.targets.tolist() == [0, 1] * 3

    def test_regression(self, tmp_path):
        found = load_table(saved(tmp_path, X=X, y=Y), "regression")
        assert found.classes == 0
        assert found.targets.dtype == np.float64
        assert np.array_equal(found.targets, Y)

    def test_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        saved(tmp_path, X=X, y=Y)
        assert np.array_equal(load_table("~/table.npz", "classification").features, X)

    def test_real_table(self):
        if not GRAVIER.is_file():
            pytest.skip(f"{GRAVIER} is not there")
        found = load_table(str(GRAVIER), "classification")
        assert found.features.shape == (168, 2905)
        assert found.targets.shape == (168,)
        assert found.classes == 2


class TestCSV:
    def test_the_column_y_or_the_last_one_holds_the_targets(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_text("a,y,b\n1,red,2\n3,blue,4\n\n5,red,6\n")
        found = load_table(str(path), "classification")
        assert found.features.tolist() == [[1, 2], [3, 4], [5, 6]]
        assert found.targets.tolist() == [1, 0, 1]
        path.write_text("a,b,c\n1,2,0.5\n3,4,1.5\n")
        found = load_table(str(path), "regression")
        assert found.features.tolist() == [[1, 2], [3, 4]]
        assert found.targets.tolist() == [0.5, 1.5]

    def test_refused(self, tmp_path):
        path = tmp_path / "table.csv"
        for content, problem in (
            ("a,y\n1,0,3\n", "row 1 has 3 values, the header 2"),
            ("a,y\nx,0\n", "column 'a' must hold numbers, and its row 1 holds 'x'"),
            ("a,y\n,0\n1,1\n", "column 'a' must hold numbers, and its row 1 holds ''"),
            ("", "not a readable .csv file with a header"),
            ("a,y\n", "y holds one class only"),
        ):
            path.write_text(content)
            refused(str(path), problem)


class TestOpenML:
    def test_labels_are_classes_and_the_version_is_asked_for(self, monkeypatch):
        asked = []

        def fetch(name, *, version, as_frame, parser):
            asked.append((name, version))
            return Bunch(data=X, target=np.array(["5", "3"] * 3, object))

        monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
        assert load_table("openml:mnist_784", "classification").targets.tolist() == [1, 0] * 3
        assert load_table("openml:mnist_784/2", "regression").targets.tolist() == [5, 3] * 3
        assert asked == [("mnist_784", 1), ("mnist_784", 2)]

    def test_offline_and_unknown(self, monkeypatch):
        for error, problem in (
            (URLError("no route"), "cannot be downloaded .*no route.*cache"),
            (ValueError("no such set"), "no such set"),
        ):

            def fetch(*_, error=error, **__):
                raise error

            monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
            refused("openml:mnist_784", problem)


class TestRefusedFile:
    def test_no_file(self, tmp_path):
        (tmp_path / "folder.npz").mkdir()
        for name in ("none.npz", "folder.npz", "none.csv"):
            refused(str(tmp_path / name), "no such file")

    def test_damaged(self, tmp_path):
        whole = Path(saved(tmp_path, X=X, y=Y)).read_bytes()
        flipped = bytearray(whole)
        flipped[whole.index(X.tobytes()[8:40])] ^= 255
        for content in (b"", b"not an archive", b"PK\x03\x04 cut short", whole[:-100], flipped):
            (tmp_path / "table.npz").write_bytes(content)
            refused(str(tmp_path / "table.npz"), "not a readable .npz file")

    def test_single_array(self, tmp_path):
        path = tmp_path / "single.npz"
        with path.open("wb") as file:
            np.save(file, X)
        refused(str(path), r"(not a readable .npz file|needs arrays X)")

    def test_pickled_objects(self, tmp_path):
        for pickled in ({"X": X.astype(object)}, {"y": Y.astype(object)}):
            refused(saved(tmp_path, **{"X": X, "y": Y} | pickled), "not a readable .npz file of plain arrays")

    def test_missing_arrays(self, tmp_path):
        for arrays, names in (({"X": X}, "'X'"), ({"y": Y}, "'y'"), ({"a": X, "b": Y}, "'a', 'b'")):
            refused(saved(tmp_path, **arrays), rf"needs arrays X .* and y .*; it has .*{names}")


class TestRefusedArrays:
    def test_whatever_they_are_for(self, tmp_path):
        last = np.arange(12).reshape(6, 2) >= 9
        for x, y, problem in (
            (X[:, 0], Y, r"X must be samples × features .* got shapes \(6,\), \(6,\)"),
            (X[..., None], Y, r"X must be samples × features .* got shapes \(6, 2, 1\), \(6,\)"),
            (X, Y[:, None], r"X must be samples × features .* got shapes \(6, 2\), \(6, 1\)"),
            (X, Y[:-1], r"X must be samples × features .* got shapes \(6, 2\), \(5,\)"),
            (X, np.array(1.0), r"X must be samples × features .* got shapes \(6, 2\), \(\)"),
            (X.astype(str), Y, "X must hold numbers, got <U"),
            (X + 1j, Y, "X must hold"),
            *[
                (np.where(last, value, X), Y, "X holds a NaN or an infinity, first at row 4, column 1")
                for value in (np.nan, np.inf, -np.inf)
            ],
        ):
            for kind in ("regression", "classification"):
                refused(saved(tmp_path, X=x, y=y), problem, kind)

    def test_regression_targets(self, tmp_path):
        for y, problem in (
            (np.r_[Y[:-1], np.nan], "y must hold finite numbers for regression"),
            (np.r_[Y[:-1], np.inf], "y must hold finite numbers for regression"),
            (Y.astype(str), "y must hold finite numbers for regression, got <U"),
            (Y + 1j, "y must hold"),
        ):
            refused(saved(tmp_path, X=X, y=y), problem, "regression")

    def test_labels(self, tmp_path):
        for y, problem in (
            (Y + 0.5, "y must hold class labels for classification, got fractional numbers"),
            (np.r_[Y[:-1], np.nan], "y (must hold class labels|holds a NaN)"),
            (np.r_[Y[:-1], np.inf], "y (must hold class labels|holds a NaN)"),
            (np.full(6, 3), r"y holds one class only \(\[3\]\)"),
        ):
            refused(saved(tmp_path, X=X, y=y), problem)


class TestMade:
    def test_shapes_and_seed(self):
        one, same, other = (make_classification(60, 8, 3, 0.5, seed) for seed in (0, 0, 1))
        assert (one.name, one.classes) == ("synthetic", 3)
        assert (one.features.shape, one.targets.shape) == ((60, 8), (60,))
        assert np.unique(one.targets).tolist() == [0, 1, 2]
        assert np.array_equal(one.features, same.features)
        assert np.array_equal(one.targets, same.targets)
        assert not np.array_equal(one.features, other.features)

    def test_signal_is_in_the_informative_share(self):
        found = make_classification(4000, 10, 2, 0.3, 0)
        means = np.stack([found.features[found.targets == c].mean(0) for c in (0, 1)])
        scatter = np.stack([found.features[found.targets == c].std(0) for c in (0, 1)])
        told_apart = (np.abs(means[0] - means[1]) > 0.15) | (np.abs(scatter[0] - scatter[1]) > 0.1)
        assert 1 <= told_apart.sum() <= 3

    def test_too_few_informative_features(self):
        with pytest.raises(DataError, match="synthetic data: 2 informative features cannot tell 5 classes"):
            make_classification(60, 4, 5, 0.5, 0)


class TestSplit:
    def test_sizes(self):
        for validation, test, sizes in (
            (5, 7, [18, 5, 7]),
            (0.2, 0.3, [15, 6, 9]),
            (0.1, 4, [23, 3, 4]),
            (14, 15, [1, 14, 15]),
            (0, 5, [25, 0, 5]),
            (5, 0, [25, 5, 0]),
        ):
            split = split_rows(table(), validation, test, seed=0)
            assert [len(part.features) for part in split] == sizes
            assert [len(part.targets) for part in split] == sizes

    def test_rows_stay_whole(self):
        whole = table(classes=3)
        for part, rows in zip(split := split_rows(whole, 6, 6, seed=1), rows_of(split), strict=True):
            assert np.array_equal(part.features, whole.features[rows])
            assert np.array_equal(part.targets, whole.targets[rows])
            assert (part.name, part.classes) == ("made", 3)

    def test_rows_are_shuffled_by_the_seed_and_all_are_taken_once(self):
        one, same, other = (rows_of(split_rows(table(), 5, 5, seed)) for seed in (0, 0, 1))
        assert one == same != other
        assert one[0] != list(range(20))
        assert sorted(row for part in one for row in part) == list(range(30))

    def test_table_is_left_alone(self):
        whole = table()
        before = whole.features.copy()
        standardize(split_rows(whole, 5, 5, 0))
        assert np.array_equal(whole.features, before)

    def test_empty_part(self):
        for sizes in ((0.01, 5), (5, 0.01), (15, 15), (0.5, 0.5), (40, 5), (-5, 5), (-0.2, 0.2)):
            with pytest.raises(DataError, match=r"made: 30 rows cannot be split .* every part needs at least one"):
                split_rows(table(), *sizes, seed=0)

    def test_training_rows_lack_a_class(self):
        rare = Table("rare", np.zeros((20, 1)), np.r_[np.zeros(19, int), 1], 2)
        outcomes = set()
        for seed in range(10):
            try:
                outcomes.add(len(np.unique(split_rows(rare, 7, 7, seed).train.targets)))
            except DataError as error:
                assert str(error).startswith("rare: the training rows lack one of the 2 classes")  # noqa: PT017
                outcomes.add("refused")
        assert outcomes == {2, "refused"}


class TestStandardize:
    def test_all_rows_by_the_training_statistics(self):
        split = split_rows(table(), 8, 8, 0)
        mean, deviation = split.train.features.mean(0), split.train.features.std(0)
        scaled = standardize(split)
        np.testing.assert_allclose(scaled.train.features.mean(0), 0, atol=1e-14)
        np.testing.assert_allclose(scaled.train.features.std(0), 1, rtol=1e-13)
        for part, before in zip(scaled[1:], split[1:], strict=True):
            np.testing.assert_allclose(part.features, (before.features - mean) / deviation, rtol=1e-12, atol=1e-14)
            assert np.array_equal(part.targets, before.targets)

    def test_other_rows_do_not_count(self):
        split = split_rows(table(), 8, 8, 0)
        wild = split._replace(
            validation=part_with(split.validation, 1e6 + split.validation.features),
            test=part_with(split.test, -1e6 * split.test.features),
        )
        assert np.array_equal(standardize(wild).train.features, standardize(split).train.features)

    def test_constant_column_becomes_zero(self):
        for value in (0.0, 1.0, 0.1, 0.3, -1e-7, 12345.678):
            features = np.c_[np.full(30, value), np.arange(30)]
            for part in standardize(split_rows(Table("constant", features, np.arange(30)), 5, 5, 0)):
                np.testing.assert_allclose(part.features[:, 0], 0, atol=1e-9)
                assert np.ptp(part.features[:, 1]) > 0

    def test_small_spread_is_no_constant(self):
        rows = np.random.default_rng(0).permutation(30)
        features = (5 + 1e-6 * rows)[:, None]
        scaled = standardize(split_rows(Table("narrow", features, np.arange(30)), 5, 5, 0))
        np.testing.assert_allclose(scaled.train.features.std(0), 1, rtol=1e-6)
