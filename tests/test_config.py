"""The YAML files against the classes that they build, and what `config.check` refuses."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import sys
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from bilevel import _schema, config
from bilevel._schema import Field
from bilevel.cli import _task

ROOT = config.config_dir()
CHOICES = [(group, choice) for group, choices in config.groups().items() for choice in choices]
ROOMS = ("datasets", "hypergrad", "implicit", "inner", "linear", "optimality", "outer", "tasks")


def compose(*overrides):
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def with_values(values, *overrides):
    """A composed configuration with values put in by dotted key, known or not."""
    cfg = compose(*overrides)
    OmegaConf.set_struct(cfg, False)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.set_struct(cfg, True)
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


# Every YAML file


@pytest.mark.parametrize("group", config.groups())
def test_every_choice_composes_passes_and_builds_what_it_names(group):
    for choice in config.groups()[group]:
        cfg = compose(f"{group}={choice}")
        config.check(cfg)
        nodes = [node for value in cfg.values() if OmegaConf.is_dict(value) for node in (value, *value.values())]
        nodes = [node for node in nodes if OmegaConf.is_dict(node) and "_target_" in node]
        assert len(nodes) >= 5, choice
        assert [node for node in nodes if config.build(node) is None] == []
        if group not in ("debug", "experiment", "sweep"):
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


# complaint


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
REFUSED = (
    ("float", "abc", "expected a number, got 'abc'"),
    ("float", True, "expected a number, got True"),
    ("float", None, "expected a number, got None"),
    ("float | None", "abc", "expected a number or null, got 'abc'"),
    ("Optional[float]", "abc", "expected a number or null, got 'abc'"),
    ("int", True, "expected a whole number, got True"),
    ("int", 1.5, "expected a whole number, got 1.5"),
    ("int", "3", "expected a whole number, got '3'"),
    ("bool", 1, "expected true or false, got 1"),
    ("bool", "yes", "expected true or false, got 'yes'"),
    ("str", 3, "expected a text, got 3"),
    ("str", None, "expected a text, got None"),
    ("Literal['a', 'b']", "c", "expected a or b, got 'c'"),
    ("Literal['a', 'b']", None, "expected a or b, got None"),
    ("Literal[1, 2]", True, "expected 1 or 2, got True"),
    (
        "Literal['a'] | TablePath",
        "table.txt",
        "expected a or the path of an .npz or .csv file or openml:NAME, got 'table.txt'",
    ),
    ("list[int]", [1, 0.5], "expected a list, each a whole number, got [1, 0.5]"),
    ("list[int]", 3, "expected a list, each a whole number, got 3"),
    ("list[Literal['a', 'b']]", ["c"], "expected a list, each a or b, got ['c']"),
    ("dict[str, int] | None", {"a": "b"}, "expected a mapping of names to a whole number or null, got {'a': 'b'}"),
    ("Literal['a'] | TablePath", 3, "expected a or the path of an .npz or .csv file or openml:NAME, got 3"),
)


def test_complaint_accepts_what_fits():
    complaints = [(*given, _schema.complaint(Field(given[0], False), given[1])) for given in ACCEPTED]
    assert [found for found in complaints if found[2] is not None] == []


def test_complaint_refuses_what_does_not():
    for annotation, value, told in REFUSED:
        found = _schema.complaint(Field(annotation, False), value)
        assert found is not None
        assert found.text == told, annotation
    for collection in ([1], {"a": 1}):
        assert _schema.complaint(Field("int", False), collection) is not None


def test_complaint_carries_the_literals_for_the_close_match():
    found = _schema.complaint(Field("Literal['svm', 'ridge'] | None", False), "smv")
    assert found is not None
    assert found.choices == ["svm", "ridge"]


def test_close_words():
    assert config.close("smv", ["svm", "ridge"]) == "; did you mean svm?"
    assert config.close("xyz", ["svm", "ridge"]) == "; known: ridge, svm"
    assert config.close("xyz", ["svm", "ridge"], hint_only=True) == ""
    assert config.close("xyz", []) == ""


# check


WRONG = (
    ("stps", 3, "stps: ", "did you mean steps?"),
    ("innr", {"_target_": "bilevel.inner.FISTA"}, "innr: ", "did you mean inner"),
    ("foo", 1, "foo: ", "known: ", "steps"),
    ("inner.rtoll", 1.0, "inner.rtoll: ", "Quadratic", "did you mean rtol"),
    ("inner.linear.rtoll", 1.0, "inner.linear.rtoll: ", "Auto", "did you mean rtol"),
    ("outer.innr", "${inner}", "outer.innr: ", "Nested", "did you mean inner?"),
    ("task.dta", "x", "task.dta: ", "Ridge", "did you mean data?"),
    ("optimizer.learning_rte", 1.0, "optimizer.learning_rte: ", "adam", "did you mean learning_rate?"),
    ("steps", "abc", "steps: ", "a whole number", "'abc'"),
    ("steps", 2.5, "steps: ", "a whole number", "2.5"),
    ("steps", True, "steps: ", "a whole number", "True"),
    ("steps", 0, "steps: ", "at least 1", "0"),
    ("steps", [1], "steps: ", "a whole number"),
    ("steps", {"a": 1}, "steps", "a whole number"),
    ("patience", 0, "patience: ", "at least 1"),
    ("gtol", None, "gtol: ", "a number", "None"),
    ("inner.rtol", "abc", "inner.rtol: ", "a number", "'abc'"),
    ("inner.rtol", [1.0], "inner.rtol: ", "a number"),
    ("optimizer.b1", "abc", "optimizer.b1: ", "a number", "'abc'"),
    ("precision", "flot32", "precision: ", "'flot32'", "did you mean float32"),
    ("platform", "tpu", "platform: ", "cpu or gpu", "'tpu'"),
    ("on_failure", "rase", "on_failure: ", "did you mean raise?"),
    ("task.data", "diabets", "task.data: ", "did you mean diabetes?"),
    ("task._target_", "os.system", "task._target_: ", "'os.system'", "bilevel, experiments, optax"),
    ("inner.linear._target_", "os.system", "inner.linear._target_: ", "'os.system'"),
    ("task._target_", "bilevel.tasks.Rigde", "task._target_: ", "'bilevel.tasks.Rigde'"),
    ("task._target_", "bilevel.no_such_room.Ridge", "task._target_: ", "'bilevel.no_such_room.Ridge'"),
    ("task._target_", "bilevel.runs._folder.os.system", "task._target_: ", "os.system"),
    ("study", {"_target_": "experiments.no.Such"}, "'experiments.no.Such'", "repository", "root of a checkout"),
    ("optimizer._target_", "optax.no.adam", "optimizer._target_: ", "'optax.no.adam'"),
    ("tracker.extra", {"_target_": "os.system"}, "tracker.extra._target_: ", "'os.system'"),
    ("tracker.many", [{"_target_": "os.system"}], "tracker.many[0]._target_: ", "'os.system'"),
)


def test_check_refuses():
    for key, value, *words in WRONG:
        message = refusal(with_values({key: value}))
        assert [word for word in words if word not in message] == [], (key, value, message)


def test_check_refuses_a_missing_key():
    cfg = compose()
    OmegaConf.set_struct(cfg, False)
    del cfg["seed"]
    assert refusal(cfg).startswith("seed: ")


def test_check_refuses_a_missing_required_field():
    cfg = compose()
    OmegaConf.set_struct(cfg, False)
    del cfg.optimizer.learning_rate
    assert refusal(cfg).startswith("optimizer.learning_rate: ")


def test_a_time_limit_is_positive_and_may_be_a_fraction_of_a_second():
    config.check(compose("time_limit=0.5"))
    for limit in (0, -1.0):
        assert refusal(with_values({"time_limit": limit})).startswith("time_limit: ")


def test_a_foreign_target_is_refused_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "foreign_target.py").write_text("class Bomb:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = with_values({"task": {"_target_": "foreign_target.Bomb"}})
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
    cfg = compose()
    OmegaConf.set_struct(cfg, False)
    cfg.task = {"_target_": "allowed_target.Task", "size": 1, "nam": "b"}
    assert "did you mean name?" in refusal(cfg)
    cfg.task = {"_target_": "allowed_target.Task"}
    assert refusal(cfg).startswith("task.size: ")
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
    cfg = with_values({"linear.rtl": 1.0})
    message = refusal(cfg)
    assert message.startswith("linear.rtl: ")
    assert "hypergrad" not in message
