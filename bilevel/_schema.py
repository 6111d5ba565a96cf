"""What a config target accepts, read from its source without importing it.

A typo in a configuration must fail before JAX is loaded, and the schema must be the class itself, not a copy of it. So
the fields of a dataclass, or the parameters of a function, are read from the syntax tree of the file that defines it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_SCHEDULED = {"ScalarOrSchedule", "base.ScalarOrSchedule"}
_NUMBERS = {"float", "jax.typing.ArrayLike", "ArrayLike"} | _SCHEDULED
_TABLE_PATH = "the path of an .npz or .csv file or openml:NAME"
_PLAIN = {"int", "bool", "str", "None", "TablePath"} | _NUMBERS


class Field(NamedTuple):
    """A settable field: the source text of its annotation, and whether it must be given."""

    annotation: str
    required: bool


class _Definition(NamedTuple):
    module: Path
    node: ast.ClassDef | ast.FunctionDef


def fields(target: str) -> dict[str, Field] | None:
    """The fields of the class or function at a dotted path, or None where the source cannot tell."""
    definition = _find(*_split(target))
    if definition is None:
        return None
    if isinstance(definition.node, ast.FunctionDef):
        return _function_fields(definition.node)
    own = [n for n in definition.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if own:
        found = _function_fields(own[0])
        return None if found is None else {name: field for name, field in found.items() if name != "self"}
    return _class_fields(definition)


def exists(target: str) -> bool:
    """Whether a definition, or at least its module, can be found at a dotted path."""
    module, name = _split(target)
    return module is not None and (_find(module, name) is not None or _opaque(module))


def summary(target: str) -> str:
    """The first line of the docstring of the class or function at a dotted path; empty where there is none."""
    definition = _find(*_split(target))
    text = None if definition is None else ast.get_docstring(definition.node)
    return (text or "").partition("\n")[0]


class Complaint(NamedTuple):
    """What is wrong with a value, and the words that would have been right."""

    text: str
    choices: list[str]


def complaint(field: Field, value: Any) -> Complaint | None:
    """What is wrong with a plain value for a field, or None."""
    kinds = _alternatives(ast.parse(field.annotation, mode="eval").body)
    if kinds is None or any(_fits(kind, value) for kind in kinds):
        return None
    return Complaint(
        f"expected {_describe(kinds)}, got {value!r}", [str(k.value) for k in kinds if isinstance(k, _Exactly)]
    )


class _Exactly(NamedTuple):
    """One value of a Literal."""

    value: Any


class _Many(NamedTuple):
    """A list, or a mapping from texts, of items of these kinds."""

    container: type
    kinds: list[Any]


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, _Exactly):
        return value == kind.value and type(value) is type(kind.value)
    if isinstance(kind, _Many):
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind.container) and all(any(_fits(k, item) for k in kind.kinds) for item in items)
    if isinstance(value, bool) or value is None:
        return kind == ("None" if value is None else "bool")
    if isinstance(value, int | float):
        return kind in _NUMBERS or (kind == "int" and isinstance(value, int))
    if isinstance(value, str):
        return kind == "str" or (
            kind == "TablePath" and (value.startswith("openml:") or value.endswith((".npz", ".csv")))
        )
    return isinstance(value, Mapping) and "_target_" in value and kind in _SCHEDULED


def _describe(kinds: list[Any]) -> str:
    words = {"int": "a whole number", "bool": "true or false", "str": "a text", "TablePath": _TABLE_PATH}
    described = [str(kind.value) for kind in kinds if isinstance(kind, _Exactly)]
    described += ["a number"] if any(kind in _NUMBERS for kind in kinds if isinstance(kind, str)) else []
    described += [word for name, word in words.items() if name in kinds]
    described += [_describe_many(kind) for kind in kinds if isinstance(kind, _Many)]
    return " or ".join([*described, *(["null"] if "None" in kinds else [])])


def _describe_many(kind: _Many) -> str:
    what = "a list" if kind.container is list else "a mapping of names"
    return f"{what}, each {_describe(kind.kinds)}" if kind.container is list else f"{what} to {_describe(kind.kinds)}"


def _alternatives(node: ast.expr) -> list[Any] | None:
    """The plain types and literal values that an annotation admits; None if it admits anything else too."""
    if isinstance(node, ast.BinOp):
        left, right = _alternatives(node.left), _alternatives(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Subscript):
        inside = node.slice
        return _of_generic(ast.unparse(node.value), inside.elts if isinstance(inside, ast.Tuple) else [inside])
    text = ast.unparse(node)
    return [text] if text in _PLAIN else None


def _of_generic(name: str, parts: list[ast.expr]) -> list[Any] | None:
    if name.endswith("Literal"):
        return [_Exactly(ast.literal_eval(part)) for part in parts]
    if name in ("list", "dict"):
        kinds = _alternatives(parts[-1])
        return None if kinds is None else [_Many(list if name == "list" else dict, kinds)]
    if not name.endswith(("Optional", "Union")):
        return None
    found = [_alternatives(part) for part in parts]
    if any(x is None for x in found):
        return None
    return [x for part in found for x in part or []] + (["None"] if name.endswith("Optional") else [])


def _class_fields(definition: _Definition) -> dict[str, Field]:
    found: dict[str, Field] = {}
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        parent = _find(definition.module, ast.unparse(base))
        if parent is not None and isinstance(parent.node, ast.ClassDef):
            found |= _class_fields(parent)
    for item in definition.node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = ast.unparse(item.annotation)
            if not annotation.startswith(("ClassVar", "typing.ClassVar")):
                found[item.target.id] = Field(annotation, item.value is None)
    return found


def _function_fields(node: ast.FunctionDef) -> dict[str, Field] | None:
    if node.args.kwarg or node.args.vararg:
        return None
    positional = node.args.posonlyargs + node.args.args
    without_default = len(positional) - len(node.args.defaults)
    required = {arg.arg for arg in positional[:without_default]}
    required |= {a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is None}
    return {
        arg.arg: Field(ast.unparse(arg.annotation) if arg.annotation else "Any", arg.arg in required)
        for arg in positional + node.args.kwonlyargs
    }


def _split(target: str) -> tuple[Path | None, str]:
    module, _, name = target.rpartition(".")
    return _module_file(module), name


def _module_file(module: str) -> Path | None:
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root) if root else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    return _file_in(path.parent, rest) if rest else path


def _file_in(folder: Path, names: list[str]) -> Path | None:
    """The file of a module by its names below a folder."""
    target = folder.joinpath(*filter(None, names))
    options = (target / "__init__.py", target.with_suffix(".py"))
    return next((option for option in options if option.is_file()), None)


def _opaque(path: Path) -> bool:
    """Whether a module makes names in ways that its source does not show (`__getattr__`, star imports)."""
    return path.suffix != ".py" or any(
        (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
        for node in _parse(path).body
    )


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: Path | None, name: str) -> _Definition | None:
    """The class or function of this name in a file, followed through `from … import`."""
    if path is None or path.suffix != ".py":
        return None
    head, _, tail = name.partition(".")
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return _Definition(path, node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == head:
                    return _find_imported(path, node, alias.name, tail)
    return None


def _find_imported(path: Path, node: ast.Import | ast.ImportFrom, imported: str, tail: str) -> _Definition | None:
    if isinstance(node, ast.Import):
        return _find(_module_file(imported), tail) if tail else None
    module = [*(node.module or "").split("."), imported] if tail else (node.module or "").split(".")
    if node.level == 0:
        return _find(_module_file(".".join(module)), tail or imported)
    folder = path.parents[node.level - 1]  # `from .module import name`, relative to the file
    return _find(_file_in(folder, module), tail or imported)
