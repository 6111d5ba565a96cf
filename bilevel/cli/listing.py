"""`--help`, and `--list GROUP`: the choices of a config group, each with a one-line description.

Hydra's own help is not used: it lists the choices of every group anew, which doubles the time to print it.
"""

from collections.abc import Sequence

from bilevel import _schema, config

_HELP = """bilevel: hyperparameter optimization by gradient descent through the solution of an inner problem
Usage: python -m bilevel.run [group=choice ...] [key=value ...]

Groups and their choices (group=choice); --list GROUP describes each choice
{groups}

Keys and their defaults (key=value)
{keys}
Examples
  python -m bilevel.run task=svm
  python -m bilevel.run task=ridge task.data=table.npz steps=200 precision=float64
  python -m bilevel.run task=svm linear=cg optimizer=sgd optimizer.learning_rate=0.01
  python -m bilevel.run -m task=svm seed=0,1,2        # a sweep with one job per seed
  python -m bilevel.run resume=FOLDER                 # resume a run that did not finish
  python -m bilevel.report FOLDER                     # write an HTML report of a run or a sweep

--help with other arguments shows the keys of the chosen parts. -m runs a sweep; --cfg job prints the configuration;
--hydra-help describes Hydra's own flags; -sc install=bash prints shell completion for `bilevel`, which is the same command."""


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
    """The choices of the group that the first argument names, or all groups if there is no argument.

    Raises:
      ConfigError: there is no such group.
    """
    groups = config.groups()
    if not arguments:
        return _aligned({group: f"{len(choices)} choices: --list {group}" for group, choices in groups.items()})
    name = arguments[0]
    group = next((known for known in (name, name.removesuffix("s"), f"{name}s") if known in groups), None)
    if group is None:
        raise config.ConfigError(f"--list {name}: there is no such group{config.close(name, groups)}")
    return _aligned({choice: _description(group, choice) for choice in groups[group]})


def _aligned(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in lines.items())


def _description(group: str, choice: str) -> str:
    """The first comment of the YAML file, or else the first line of its target's docstring."""
    text = (config.config_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    if comments:
        return comments[0]
    targets = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("_target_:")]
    return _schema.summary(targets[0]) if targets else ""
