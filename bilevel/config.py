"""The configuration: where it lies, what is wrong with it (told before JAX is loaded), and how objects come of it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from bilevel import _schema

ALLOWED = ("bilevel", "optax", "optimistix", "lineax", "sklearn")
GENERAL = ("precision", "platform", "seed")  # what a study takes as well
_HERE = Path(__file__).resolve().parent


class ConfigError(Exception):
    """A configuration that cannot be run; the message is one sentence that names the key and the fix."""


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


OmegaConf.register_new_resolver(
    "by_size", lambda full, small, *, _root_: small if _root_.size == "small" else full, replace=True
)


def config_dir() -> Path:
    """The folder of the YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    for folder in (_HERE / "configs", _HERE.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no configs/config.yaml beside or inside {_HERE}: the installation is incomplete, reinstall it")


def groups() -> dict[str, list[str]]:
    """Every config group with its choices, sorted."""
    root = config_dir()
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        group, _, choice = path.relative_to(root).with_suffix("").as_posix().partition("/")
        if choice and group != "hydra":
            found.setdefault(group, []).append(choice)
    return found


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that these overrides give, as plain values, interpolations unresolved."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def check(cfg: DictConfig) -> None:
    """Check every value of a composed configuration against the class or function that it builds, importing none.

    Raises:
      ConfigError: naming the key, what is wrong, and close matches.
    """
    plain, all_groups = _own_values(cfg), groups()
    top = {key: value for key, value in plain.items() if key not in all_groups and key != "hydra"}
    known = _schema.fields("bilevel.config.RunConfig")
    assert known is not None
    _check_fields("", top, known, "the top level", alternatives=[*known, *all_groups])
    for name, least in (("steps", 1), ("patience", 1), ("gtol", 0), ("seed", 0)):
        if top[name] is not None and top[name] < least:
            raise ConfigError(f"{name}: must be at least {least}, got {top[name]}")
    if top["time_limit"] is not None and not top["time_limit"] > 0:
        raise ConfigError(f"time_limit: must be positive, in seconds, got {top['time_limit']}")
    for name in ("study", *all_groups):
        _check_targets(name, plain.get(name))


def _own_values(node: Any) -> Any:
    """Plain values; a node that only refers to another one (`linear: ${linear}`) is left out: it is checked at its home."""
    if isinstance(node, ListConfig):
        return [_own_values(value) for value in node]
    if not isinstance(node, DictConfig):
        return node
    return {
        str(key): _own_values(node[key])
        for key in node
        if not (OmegaConf.is_interpolation(node, str(key)) and isinstance(node[key], DictConfig))
    }


def build(node: Any) -> Any:
    """Instantiate a checked node. The one place that does, so that the allowed packages are all that can be called."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    _check_targets("config", OmegaConf.to_container(node, resolve=True))
    try:
        return instantiate(node)
    except InstantiationException as error:
        raise ConfigError(f"{node._target_}: {error.__cause__ or error}") from error


def close(word: str, known: Iterable[str], *, hint_only: bool = False) -> str:
    """`; did you mean …?` with the closest known words, or their list if few."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    if hint_only or not known:
        return ""
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""


def _check_targets(path: str, node: Any) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_target(path, node)
        for key, value in node.items():
            _check_targets(f"{path}.{key}", value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_targets(f"{path}[{index}]", value)


def _check_target(path: str, node: Mapping[str, Any]) -> None:
    target = str(node["_target_"])
    if target.split(".")[0] not in ALLOWED:
        raise ConfigError(f"{path}._target_: {target!r} is not in an allowed package ({', '.join(ALLOWED)})")
    if not _schema.exists(target):
        raise ConfigError(f"{path}._target_: there is no {target!r}")
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
        wrong = _schema.complaint(known[key], value)
        if wrong:
            raise ConfigError(f"{prefix}{key}: {wrong.text}{close(str(value), wrong.choices, hint_only=True)}")
    missing = [key for key, field in known.items() if field.required and key not in given]
    if missing and not partial:
        raise ConfigError(f"{prefix}{missing[0]}: {owner} needs this key, and it is missing")
