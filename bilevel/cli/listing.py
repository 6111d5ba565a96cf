"""`--help`, and `--list GROUP`: the choices of a config group, with a line each.

Hydra's own help takes as long again to list the choices, for each group anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from bilevel import _schema, config

_HELP = """bilevel: hyperparameters by gradient descent through the solution of an inner problem
Usage: python -m bilevel.run [group=choice ...] [key=value ...]

Groups and their choices (group=choice); --list GROUP says what each is
{groups}

Keys and their defaults (key=value)
{keys}
Examples
  python -m bilevel.run task=svm
  python -m bilevel.run task=ridge task.data=table.npz steps=200 precision=float64
  python -m bilevel.run task=svm linear=cg optimizer=sgd optimizer.learning_rate=0.01
  python -m bilevel.run -m task=svm seed=0,1,2        # a sweep: one job for each
  python -m bilevel.run resume=FOLDER                 # go on with a run that was stopped
  python -m bilevel.report FOLDER                     # a run or a sweep as a page

--help after other arguments shows the keys that they lead to. -m sweeps; --cfg job shows the configuration, --hydra-help
Hydra's own flags; -sc install=bash the shell completion of `bilevel`, the same command by another name."""


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for the help."""
    return bool({"-h", "--help"} & set(arguments))


def help_for(arguments: Sequence[str]) -> str:
    """The help, with the keys of the parts that the other arguments choose."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    folders: dict[str, list[str]] = {}
    for group, choices in config.groups().items():
        for choice in choices:
            folder, _, name = f"{group}/{choice}".rpartition("/")
            folders.setdefault(folder, []).append(name)
    groups = "\n".join(f"{folder}: {', '.join(names)}" for folder, names in folders.items())
    return _HELP.format(groups=groups, keys=config.to_yaml(config.compose(overrides)))


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
