"""The configuration: composed from YAML files, checked before JAX is loaded, and built into objects."""

from __future__ import annotations  # `_keys` reads them as text

import dataclasses
import difflib
import hashlib
import json
import linecache
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from bilevel import _schema

ALLOWED = ("bilevel", "experiments", "optax", "optimistix", "lineax", "sklearn")
GENERAL = ("precision", "platform", "seed")  # keys that a study uses as well
AROUND = ("tracker", "checkpoint", "job_time_limit", "allow_targets")  # keys that change no numbers
NEUTRAL = ("steps", "time_limit", *AROUND)  # keys that do not change the numbers of completed steps
_IGNORED = (*NEUTRAL, "resume", "hydra")
_AMOUNTS = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")
_HERE = Path(__file__).resolve().parent
_ELSEWHERE = object()  # stands for a value that is checked where it is defined
_IN_CHECKOUT = (
    ": the experiments are in the folder experiments/ of the repository, not in the installed package; "
    "run this command from the root of a checkout"
)


class ConfigError(Exception):
    """The configuration cannot be used. The message is one sentence that names the key and the fix."""


@dataclasses.dataclass
class RunConfig:
    """The top level of the configuration, besides the groups."""

    steps: int
    precision: Literal["float32", "float64"]
    platform: Literal["cpu", "gpu"]
    seed: int
    on_failure: Literal["raise", "skip", "warn"]
    gtol: float
    patience: int | None
    time_limit: float | None
    study: Any
    size: Literal["full", "small"]
    checkpoint: Any
    job_time_limit: float | None
    allow_targets: list[str]
    resume: str | None


@dataclasses.dataclass
class CheckpointConfig:
    """The keys of `checkpoint`."""

    every: int | None
    seconds: float | None


OmegaConf.register_new_resolver(
    "by_size", lambda full, small, *, _root_: small if _root_.size == "small" else full, replace=True
)


def overrides_hash(overrides: Iterable[str]) -> str:
    """A hash of the overrides that change numbers."""
    kept = sorted(o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] not in AROUND)
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:10]


def sweep_hash(overrides: Iterable[str], about_hydra: Iterable[str]) -> str:
    """A hash of the overrides of a sweep and of its sweeper, without the number of trials and jobs at a time."""
    how = [o for o in about_hydra if o.startswith(("hydra/sweeper", "hydra.sweeper."))]
    return overrides_hash([*overrides, *(o for o in how if not o.startswith(_AMOUNTS))])


OmegaConf.register_new_resolver("job_name", overrides_hash, replace=True)
OmegaConf.register_new_resolver("sweep_name", sweep_hash, use_cache=True, replace=True)  # one for all jobs


def config_dir() -> Path:
    """The folder of the YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    for folder in (_HERE / "configs", _HERE.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no configs/config.yaml in {_HERE} or beside it: the installation is incomplete; reinstall it")


def groups() -> dict[str, list[str]]:
    """Every config group with its choices, sorted."""
    root = config_dir()
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        group, _, choice = path.relative_to(root).with_suffix("").as_posix().partition("/")
        if choice and group != "hydra":
            found.setdefault(group, []).append(choice)
    return found


def choices(hydra: Any) -> dict[str, str]:
    """The choice made in each group, from Hydra's own node, without Hydra's own groups."""
    made = {str(group): choice for group, choice in hydra.runtime.choices.items()}
    return {group: choice for group, choice in made.items() if choice and not group.startswith("hydra/")}


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """The configuration for these overrides; `with_hydra` keeps Hydra's own node."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def with_defaults(cfg: DictConfig) -> DictConfig:
    """A configuration read from a run folder, with defaults for missing keys."""
    whole = compose([])
    for key in cfg:
        OmegaConf.update(whole, str(key), cfg[key], merge=False, force_add=True)
    return whole


def check(cfg: DictConfig) -> None:
    """Check every value of a composed configuration against the class or function that it builds, without importing it.

    Raises:
      ConfigError: with the key, the problem, and close matches.
    """
    plain, all_groups = _own_values(cfg), groups()
    top = {key: value for key, value in plain.items() if key not in all_groups and key != "hydra"}
    known, checkpoint = _keys(RunConfig), top.get("checkpoint")
    _check_fields("", top, known, "the top level", alternatives=[*known, *all_groups])
    if not isinstance(checkpoint, Mapping):
        raise ConfigError(
            f"checkpoint: it has keys of its own ({', '.join(_keys(CheckpointConfig))}), got {checkpoint!r}"
        )
    _check_fields("checkpoint.", checkpoint, _keys(CheckpointConfig), "checkpoint")
    _check_ranges(_flat("", top))
    for name in ("study", *all_groups):
        _check_targets(name, plain.get(name), top["allow_targets"])


def check_study(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that has no effect on a study."""
    used = ("experiment", "study", "size", *GENERAL, *AROUND)
    idle = [key for key in (o.lstrip("+~").partition("=")[0].split(".")[0] for o in overrides) if key not in used]
    if idle:
        raise ConfigError(f"{idle[0]}: this key has no effect on a study, whose settings are study.*")


def _keys(settings: type) -> dict[str, _schema.Field]:
    """The fields of a dataclass without defaults."""
    return {field.name: _schema.Field(str(field.type), required=True) for field in dataclasses.fields(settings)}


def _check_ranges(values: Mapping[str, Any]) -> None:
    for key, least in (("steps", 1), ("patience", 1), ("gtol", 0), ("seed", 0), ("checkpoint.every", 1)):
        if values[key] is not None and not values[key] >= least:
            raise ConfigError(f"{key}: must be at least {least}, got {values[key]}")
    for key in ("time_limit", "job_time_limit", "checkpoint.seconds"):
        if values[key] is not None and not values[key] > 0:
            raise ConfigError(f"{key}: must be a positive number of seconds, got {values[key]}")


def identity(plain: Mapping[str, Any]) -> str:
    """A hash of the part of a resolved configuration that determines a run's numbers."""
    kept = {key: value for key, value in plain.items() if key not in _IGNORED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The differences between two resolved configurations that change numbers, one phrase for each key."""
    old, new = _flat("", there), _flat("", here)
    changed = {
        key: f"{old.get(key, 'not set')} there and {new.get(key, 'not set')} here"
        for key in {**old, **new}
        if key.split(".")[0] not in _IGNORED and old.get(key) != new.get(key)
    }
    # outer.inner.rtol refers to inner.rtol, and is not reported twice
    return [f"{key} is {how}" for key, how in changed.items() if changed.get(key.partition(".")[2]) != how]


def _flat(path: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping) or (path and not node):
        return {path: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(f"{path}.{key}" if path else str(key), value)
    return found


def to_yaml(cfg: DictConfig) -> str:
    """A configuration in YAML, with unresolved interpolations."""
    return OmegaConf.to_yaml(cfg)


def plain_values(cfg: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A configuration as plain values."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _own_values(node: Any) -> Any:
    """Plain values, with `_ELSEWHERE` for a node that refers to another one (`linear: ${linear}`)."""
    if isinstance(node, ListConfig):
        return [_own_values(value) for value in node]
    if not isinstance(node, DictConfig):
        return node
    return {
        str(key): _ELSEWHERE
        if OmegaConf.is_interpolation(node, str(key)) and isinstance(node[key], DictConfig)
        else _own_values(node[key])
        for key in node
    }


def build(node: Any, allowed: Sequence[str] = ()) -> Any:
    """Instantiate a checked node. Nothing else instantiates nodes, so that only allowed packages can be called.

    Args:
      node: a node with a `_target_`.
      allowed: packages besides `ALLOWED`: the key allow_targets.

    Raises:
      ConfigError: a target is not allowed, or it refuses its arguments. An error in its code is raised as it is.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    _check_targets("config", OmegaConf.to_container(node, resolve=True), allowed)
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if cause and not raised_in(cause, ("hydra", *ALLOWED, *allowed)):
            raise cause from cause.__cause__
        found = re.search(r"target '(?:.*\.)?(\w+)'", str(error))  # the node itself, or one below it
        name, message = found[1] if found else node._target_, str(cause or error)
        raise ConfigError(message if name in message else f"{name}: {message}") from error


def raised_in(error: BaseException, packages: Sequence[str]) -> bool:
    """Whether code of one of these packages raised an error on purpose: a `raise` statement, or Hydra's call of a target."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    package = str(frame.f_globals.get("__name__")).split(".")[0]
    statement = linecache.getline(frame.f_code.co_filename, line).strip()
    return package in packages and (package == "hydra" or statement.startswith("raise "))


def close(word: str, known: Iterable[str], *, hint_only: bool = False) -> str:
    """`; did you mean …?` with the closest known words, or a list of all if they are few."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    if hint_only or not known:
        return ""
    return f"; known: {', '.join(known)}" if len(known) <= 30 else ""


def _check_targets(path: str, node: Any, allowed: Sequence[str]) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_target(path, node, allowed)
        for key, value in node.items():
            _check_targets(f"{path}.{key}", value, allowed)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_targets(f"{path}[{index}]", value, allowed)


def _check_target(path: str, node: Mapping[str, Any], allowed: Sequence[str]) -> None:
    target, packages = str(node["_target_"]), (*ALLOWED, *allowed)
    if target.split(".")[0] not in packages:
        raise ConfigError(
            f"{path}._target_: {target!r} is not in an allowed package ({', '.join(packages)}): "
            f"if you trust it, add allow_targets=[{target.split('.')[0]}]"
        )
    if not _schema.exists(target):
        hint = _IN_CHECKOUT if target.startswith("experiments.") else ""
        raise ConfigError(f"{path}._target_: there is no {target!r}{hint}")
    known = _schema.fields(target)
    if known is not None:
        given = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
        partial = bool(node.get("_partial_", False))
        _check_fields(f"{path}.", given, known, target.rsplit(".", 1)[1], partial=partial)


def _check_fields(
    prefix: str,
    given: Mapping[str, Any],
    known: Mapping[str, _schema.Field],
    owner: str,
    *,
    partial: bool = False,
    alternatives: Sequence[str] | None = None,
) -> None:
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}: {owner} has no such key{close(key, alternatives or known)}")
        wrong = None if value is _ELSEWHERE else _schema.complaint(known[key], value)
        if wrong:
            raise ConfigError(f"{prefix}{key}: {wrong.text}{close(str(value), wrong.choices, hint_only=True)}")
    missing = [key for key, field in known.items() if field.required and key not in given]
    if missing and not partial:
        raise ConfigError(f"{prefix}{missing[0]}: {owner} requires this key")
