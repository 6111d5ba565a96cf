"""`--list GROUP`: the choices of a config group, with a line each."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel import _schema, config


def of(arguments: Sequence[str]) -> str:
    """The choices of a group, or the groups.

    Raises:
      ConfigError: there is no such group.
    """
    groups = config.groups()
    if not arguments:
        width = max(map(len, groups))
        return "\n".join(
            f"{group:<{width}}  {len(choices)} choices: --list {group}" for group, choices in groups.items()
        )
    asked = arguments[0]
    group = next((name for name in (asked, asked.removesuffix("s"), f"{asked}s") if name in groups), None)
    if group is None:
        raise config.ConfigError(f"--list {asked}: there is no such group{config.close(asked, groups)}")
    width = max(map(len, groups[group]))
    return "\n".join(f"{choice:<{width}}  {_line(group, choice)}".rstrip() for choice in groups[group])


def _line(group: str, choice: str) -> str:
    """The first comment of its file, or the first line of what it builds."""
    text = (config.config_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    if comments:
        return comments[0]
    targets = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("_target_:")]
    return _schema.summary(targets[0]) if targets else ""
