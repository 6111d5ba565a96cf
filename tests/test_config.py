"""The YAML files against the classes that they build, and what `config.check` refuses."""

import copy
import dataclasses
import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from bilevel import _schema, config
from bilevel._schema import Field
from bilevel.cli import _task

ROOT = config.config_dir()
CHOICES = [(group, choice) for group, choices in config.groups().items() for choice in choices]
SETTINGS = {"debug", "experiment", "sweep"}  # groups that hold settings of several others
ROOMS = ("datasets", "hypergrad", "implicit", "inner", "linear", "optimality", "outer", "tasks")


def compose(*overrides):
    return copy.deepcopy(_composed(overrides))


_composed = functools.cache(config.compose)


@functools.cache
def part(group: str, choice: str) -> Any:
    """What a choice builds, from its file alone unless it takes from others: a composition takes a quarter of a second."""
    file = ROOT / group / f"{choice}.yaml"
    alone = not any(word in file.read_text() for word in ("defaults:", "${"))
    node = OmegaConf.load(file) if alone else compose(f"{group}={choice}")[group]
    return config.build(node) if node else None


def with_value(key, value):
    """A composed configuration with a value put in by dotted key, known or not."""
    cfg = compose()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def refusal(cfg):
    with pytest.raises(config.ConfigError) as error:
        config.check(cfg)
    message = str(error.value)
    assert "\n" not in message
    return message


def nodes_with_target(plain):
    if not isinstance(plain, dict):
        return []
    return ([plain] if "_target_" in plain else []) + [n for v in plain.values() for n in nodes_with_target(v)]


def yaml_targets():
    """Every `_target_` node of every YAML file, as (id, target, node); interpolations are left as text."""
    found = []
    for group, choice in CHOICES:
        plain = OmegaConf.to_container(OmegaConf.load(ROOT / group / f"{choice}.yaml"), resolve=False)
        for number, node in enumerate(nodes_with_target(plain)):
            found.append((f"{group}/{choice}" + (f"#{number}" if number else ""), node["_target_"], node))
    return found


TARGETS = yaml_targets()


def own(*kinds: str, top_only: bool = False) -> list[tuple[str, str, dict[str, Any]]]:
    return [each for each in TARGETS if each[1].split(".")[0] in kinds and not (top_only and "#" in each[0])]


def settings(node):
    return {key: value for key, value in node.items() if key != "defaults" and not key.startswith("_")}


def real_fields(target):
    """Name -> required, from the live class or function."""
    parameters = inspect.signature(get_object(target)).parameters.items()
    return {name: p.default is p.empty for name, p in parameters}


def public_callables():
    """Every public dataclass and function of the rooms that a configuration may name."""
    for room in ROOMS:
        module = importlib.import_module(f"bilevel.{room}")
        for name in module.__all__:
            made = getattr(module, name)
            if dataclasses.is_dataclass(made) or inspect.isfunction(made):
                yield f"bilevel.{room}.{name}"


def compositions() -> Iterator[tuple[dict[str, str], DictConfig]]:
    """Every choice, with its composition: one of each group at a time, since a composition takes a quarter of a second."""
    parts = {group: choices for group, choices in config.groups().items() if group not in SETTINGS}
    made = [zip(parts, choices, strict=True) for choices in itertools.zip_longest(*parts.values())]
    alone = [[(group, choice)] for group in SETTINGS for choice in config.groups()[group]]
    for pairs in (*made, *alone):
        chosen = {group: choice for group, choice in pairs if choice}
        yield chosen, compose(*(f"{group}={choice}" for group, choice in chosen.items()))


def test_every_choice_composes_passes_and_builds_what_it_names():
    for made, cfg in compositions():
        config.check(cfg)
        nodes = [node for value in cfg.values() if OmegaConf.is_dict(value) for node in (value, *value.values())]
        nodes = [node for node in nodes if OmegaConf.is_dict(node) and "_target_" in node]
        assert len(nodes) >= 5, made
        assert [node for node in nodes if config.build(node) is None] == []
        for group in made.keys() - SETTINGS:
            chosen = [cfg[group]] if "_target_" in cfg[group] else list(cfg[group].values())
            assert [node for node in chosen if not is_built_from(config.build(node), node)] == []


def is_built_from(built: Any, node: DictConfig) -> bool:
    """Whether an object is what the target of a node makes."""
    target = get_object(node._target_)
    if node.get("_partial_"):
        return built.func is target
    if inspect.isclass(target):
        return type(built) is target
    return callable(built.init) and callable(built.update)


def test_a_yaml_has_the_keys_of_its_target():
    for name, target, node in own("bilevel", "experiments", "optax"):
        assert set(settings(node)) <= set(real_fields(target)), name
    for name, target, node in own("bilevel", "experiments", top_only=True):
        assert node.get("_partial_") or set(settings(node)) == set(real_fields(target)), name


def test_the_schema_read_from_source_is_the_class():
    for target in {target for _, target, _ in TARGETS} | set(public_callables()):
        known = _schema.fields(target)
        assert known is not None, f"unknown keys of {target} would not be found"
        assert {name: field.required for name, field in known.items()} == real_fields(target), target


def test_every_plain_setting_has_a_value_that_is_refused():
    for name, target, node in own("bilevel", "experiments", "optax"):
        known = _schema.fields(target)
        assert known is not None
        for key, value in settings(node).items():
            refers = isinstance(value, dict) or (isinstance(value, str) and value.startswith("${"))
            refused = [x for x in ("no such value", 0.5, True) if _schema.complaint(known[key], x)]
            if value is None and not refused:  # an object: the class itself must refuse a text
                with pytest.raises(TypeError, match=key):
                    get_object(target)(**{key: "no such value"})
            else:
                assert refers or refused, f"{name}: {key}: {known[key].annotation} takes anything"


def test_the_top_level_is_the_run_config():
    keys = {str(key) for key in compose()} - set(config.groups())
    assert keys == {field.name for field in dataclasses.fields(config.RunConfig)}


def test_groups_are_the_folders():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"hydra"}
    assert set(config.groups()) == folders
    assert config.groups()["task"] == sorted(path.stem for path in (ROOT / "task").glob("*.yaml"))


ACCEPTED = (
    ("float", 1),
    ("float", 1.5),
    ("float", float("inf")),
    ("float | None", None),
    ("Optional[float]", None),
    ("Union[int, str]", "abc"),
    ("int", 3),
    ("int | None", None),
    ("bool", False),
    ("str", "abc"),
    ("Literal['a', 'b']", "a"),
    ("Literal[1, 2]", 2),
    ("typing.Literal['a'] | None", None),
    ("Literal['a'] | TablePath", "table.npz"),
    ("Literal['a'] | TablePath", "table.csv"),
    ("Literal['a'] | TablePath", "openml:mnist_784"),
    ("Literal['a'] | TablePath", "a"),
    ("list[int]", [1, 2]),
    ("list[Literal['a', 'b']]", ["b"]),
    ("list[float] | None", None),
    ("dict[str, int]", {"a": 1}),
    ("base.ScalarOrSchedule", 0.1),
    ("Callable[..., Any]", "anything"),
    ("LinearSolver | None", 3),
    ("Any", object()),
    ("linear.LinearSolver", {"_target_": "bilevel.linear.CG"}),
)
TABLE = "a or the path of an .npz or .csv file or openml:NAME"
REFUSED = (
    ("float", "abc", "a number"),
    ("float", True, "a number"),
    ("float", None, "a number"),
    ("float | None", "abc", "a number or null"),
    ("Optional[float]", "abc", "a number or null"),
    ("int", True, "a whole number"),
    ("int", 1.5, "a whole number"),
    ("int", "3", "a whole number"),
    ("bool", 1, "true or false"),
    ("bool", "yes", "true or false"),
    ("str", 3, "a text"),
    ("str", None, "a text"),
    ("Literal['a', 'b']", "c", "a or b"),
    ("Literal['a', 'b']", None, "a or b"),
    ("Literal[1, 2]", True, "1 or 2"),
    ("Literal['a'] | TablePath", "table.txt", TABLE),
    ("Literal['a'] | TablePath", 3, TABLE),
    ("list[int]", [1, 0.5], "a list, each a whole number"),
    ("list[int]", 3, "a list, each a whole number"),
    ("list[Literal['a', 'b']]", ["c"], "a list, each a or b"),
    ("dict[str, int] | None", {"a": "b"}, "a mapping of names to a whole number or null"),
)


def test_complaint_accepts_what_fits():
    complaints = [(*given, _schema.complaint(Field(given[0], False), given[1])) for given in ACCEPTED]
    assert [found for found in complaints if found[2] is not None] == []


def test_complaint_refuses_what_does_not():
    for annotation, value, expected in REFUSED:
        found = _schema.complaint(Field(annotation, False), value)
        assert found is not None
        assert found.text == f"expected {expected}, got {value!r}"
    for collection in ([1], {"a": 1}):
        assert _schema.complaint(Field("int", False), collection) is not None


def test_close_words():
    found = _schema.complaint(Field("Literal['svm', 'ridge'] | None", False), "smv")
    assert found is not None
    assert found.choices == ["svm", "ridge"]
    assert config.close("smv", ["svm", "ridge"]) == "; did you mean svm?"
    assert config.close("xyz", ["svm", "ridge"]) == "; known: ridge, svm"
    assert config.close("xyz", ["svm", "ridge"], hint_only=True) == ""
    assert config.close("xyz", []) == ""


WRONG = (  # wrong values that `test_bad_input.py` has are left out
    ("stps", 3, "stps: ", "did you mean steps?"),
    ("innr", {"_target_": "bilevel.inner.FISTA"}, "innr: ", "did you mean inner"),
    ("foo", 1, "foo: ", "known: ", "steps"),
    ("inner.rtoll", 1.0, "inner.rtoll: ", "Quadratic", "did you mean rtol"),
    ("task.dta", "x", "task.dta: ", "Ridge", "did you mean data?"),
    ("optimizer.learning_rte", 1.0, "optimizer.learning_rte: ", "adam", "did you mean learning_rate?"),
    ("inner.linear.rtoll", 1.0, "inner.linear.rtoll: ", "Auto", "did you mean rtol"),
    ("outer.innr", "${inner}", "outer.innr: ", "Nested", "did you mean inner?"),
    ("steps", True, "steps: ", "a whole number", "True"),
    ("steps", [1], "steps: ", "a whole number"),
    ("steps", {"a": 1}, "steps", "a whole number"),
    ("patience", 0, "patience: ", "at least 1"),
    ("time_limit", 0, "time_limit: ", "positive"),
    ("time_limit", -1.0, "time_limit: ", "positive"),
    ("gtol", None, "gtol: ", "a number", "None"),
    ("inner.rtol", "abc", "inner.rtol: ", "a number", "'abc'"),
    ("optimizer.b1", "abc", "optimizer.b1: ", "a number", "'abc'"),
    ("platform", "tpu", "platform: ", "cpu or gpu", "'tpu'"),
    ("on_failure", "rase", "on_failure: ", "did you mean raise?"),
    ("task.data", "diabets", "task.data: ", "did you mean diabetes?"),
    ("inner.linear._target_", "os.system", "inner.linear._target_: ", "'os.system'"),
    ("task._target_", "bilevel.no_such_room.Ridge", "task._target_: ", "'bilevel.no_such_room.Ridge'"),
    ("study", {"_target_": "experiments.no.Such"}, "'experiments.no.Such'", "repository", "root of a checkout"),
    ("optimizer._target_", "optax.no.adam", "optimizer._target_: ", "'optax.no.adam'"),
    ("tracker.extra", {"_target_": "os.system"}, "tracker.extra._target_: ", "'os.system'"),
    ("tracker.many", [{"_target_": "os.system"}], "tracker.many[0]._target_: ", "'os.system'"),
)


def test_check_refuses():
    for key, value, *words in WRONG:
        message = refusal(with_value(key, value))
        assert [word for word in words if word not in message] == [], (key, value, message)


def test_check_refuses_a_missing_key_and_a_missing_required_field():
    cfg = compose()
    OmegaConf.set_struct(cfg, False)
    del cfg.optimizer.learning_rate
    assert refusal(cfg).startswith("optimizer.learning_rate: ")
    del cfg["seed"]
    assert refusal(cfg).startswith("seed: ")


def test_a_time_limit_may_be_a_fraction_of_a_second():
    config.check(compose("time_limit=0.5"))


def test_a_foreign_target_is_refused_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "foreign_target.py").write_text("class Bomb:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = with_value("task", {"_target_": "foreign_target.Bomb"})
    assert "'foreign_target.Bomb'" in refusal(cfg)
    with pytest.raises(config.ConfigError, match=r"foreign_target\.Bomb"):
        config.build(cfg.task)
    assert "foreign_target" not in sys.modules


def test_an_allowed_target_is_checked_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "allowed_target.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Task:\n    size: int\n    name: str = 'a'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "ALLOWED", (*config.ALLOWED, "allowed_target"))
    for values, words in (({"size": 1, "nam": "b"}, "did you mean name?"), ({}, "task.size: ")):
        assert words in refusal(with_value("task", {"_target_": "allowed_target.Task", **values}))
    assert "allowed_target" not in sys.modules


def test_a_nested_foreign_target_is_not_built():
    node = OmegaConf.create({"_target_": "bilevel.hypergrad.Implicit", "linear": {"_target_": "os.getcwd"}})
    with pytest.raises(config.ConfigError, match=r"os\.getcwd"):
        config.build(node)


def test_a_class_that_refuses_its_values_is_a_config_error():
    with pytest.raises(config.ConfigError, match=r"Ridge: task\.penalty must be positive"):
        config.build(compose("task.penalty=-1").task)


def test_a_private_yaml_is_composed_and_checked(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "right.yaml").write_text("defaults:\n  - ridge\npenalty: 2.0\n")
    (tmp_path / "task" / "wrong.yaml").write_text("defaults:\n  - ridge\npenallty: 2.0\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    right = compose(search, "task=right")
    config.check(right)
    assert config.build(right.task).penalty == 2.0
    message = refusal(compose(search, "task=wrong"))
    assert message.startswith("task.penallty: ")
    assert "did you mean penalty?" in message


def test_an_algorithm_is_named_by_one_yaml_with_the_parts_that_it_has(tmp_path, monkeypatch):
    (tmp_path / "one_yaml.py").write_text(
        "import dataclasses, types, typing\n"
        "@dataclasses.dataclass\nclass SingleLoop:\n    problem: typing.Any\n    optimizer: typing.Any\n"
        "    def init(self, hparams, params, data):\n        return types.SimpleNamespace(hparams=hparams, params=params)\n"
        "    def point(self, new, old):\n        return old.hparams, new.params\n"
    )
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "single_loop.yaml").write_text(
        "_target_: one_yaml.SingleLoop\n_partial_: true\noptimizer: ${optimizer}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose(f"hydra.searchpath=[file://{tmp_path}]", "outer=single_loop", "allow_targets=[one_yaml]")
    config.check(cfg)
    prepared = _task.prepare(cfg)
    assert type(prepared.algorithm).__name__ == "SingleLoop"
    assert prepared.algorithm.problem is prepared.setup.problem
    assert callable(prepared.algorithm.optimizer.update)


def test_a_changed_part_is_told_once():
    here, there = (config.plain_values(compose("inner=fista", f"inner.rtol={rtol}")) for rtol in (1e-3, 1e-6))
    assert here["outer"]["inner"]["rtol"] == 1e-3
    assert config.differences(there, here) == ["inner.rtol is 1e-06 there and 0.001 here"]


def test_a_part_of_a_part_that_is_refused_is_named():
    with pytest.raises(config.ConfigError, match=r"^CG: rtol and atol must not be negative, got -1"):
        config.build(compose("linear=cg", "linear.rtol=-1").outer)


def test_an_interpolated_node_is_checked_at_its_home():
    message = refusal(with_value("linear.rtl", 1.0))
    assert message.startswith("linear.rtl: ")
    assert "hypergrad" not in message
