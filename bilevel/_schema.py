"""The arguments of a config target, read from its source without importing it.

A typo in a configuration must be reported before JAX is loaded, and the schema must be the class itself, not a copy of it. So
the fields of a dataclass, or the parameters of a function, are read from the syntax tree of the file that defines it.
"""

import ast
import functools
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Field(NamedTuple):
    """A settable field: the source text of its annotation, and whether it must be given."""

    annotation: str
    required: bool


class _Definition(NamedTuple):
    module: Path
    node: ast.ClassDef | ast.FunctionDef


def fields(target: str) -> dict[str, Field] | None:
    """The fields of the class or function at a dotted path, or None if its source does not show them."""
    definition = _find(*_split(target))
    if definition is None:
        return None
    if isinstance(definition.node, ast.FunctionDef):
        return _function_fields(definition.node)
    for node in definition.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _function_fields(node)
    return _class_fields(definition)


def exists(target: str) -> bool:
    """Whether a dotted path names a definition, or may name one that the source of its module does not show."""
    module, name = _split(target)
    return module is not None and (_find(module, name) is not None or _opaque(module))


def summary(target: str) -> str:
    """The first line of the docstring of the class or function at a dotted path; empty if there is none."""
    definition = _find(*_split(target))
    text = None if definition is None else ast.get_docstring(definition.node)
    return (text or "").partition("\n")[0]


class Complaint(NamedTuple):
    """The problem with a value, and the literal values that would be right."""

    text: str
    choices: list[str]


def complaint(field: Field, value: Any) -> Complaint | None:
    """The problem with a plain value for a field, or None."""
    kinds = _kinds(ast.parse(field.annotation, mode="eval").body)
    if kinds is None or _any_fits(kinds, value):
        return None
    return Complaint(f"expected {_describe(kinds)}, got {value!r}", [kind.words for kind in kinds if kind.literal])


class _Kind(NamedTuple):
    """A kind of plain values: its description, its test, and whether it is one value of a Literal."""

    words: str
    fits: Callable[[Any], bool]
    literal: bool = False


_NUMBER = _Kind("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
_SCHEDULE = _Kind("a number", lambda value: (isinstance(value, Mapping) and "_target_" in value) or _NUMBER.fits(value))
_TABLE = _Kind(
    "the path of an .npz or .csv file or openml:NAME",
    lambda value: isinstance(value, str) and (value.startswith("openml:") or value.endswith((".npz", ".csv"))),
)
_PLAIN = {
    "int": _Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "bool": _Kind("true or false", lambda value: isinstance(value, bool)),
    "str": _Kind("a text", lambda value: isinstance(value, str)),
    "None": _Kind("null", lambda value: value is None),
    "TablePath": _TABLE,
    **dict.fromkeys(("float", "ArrayLike", "jax.typing.ArrayLike"), _NUMBER),
    **dict.fromkeys(("ScalarOrSchedule", "base.ScalarOrSchedule"), _SCHEDULE),
}


def _any_fits(kinds: list[_Kind], value: Any) -> bool:
    return any(kind.fits(value) for kind in kinds)


def _describe(kinds: list[_Kind]) -> str:
    words = dict.fromkeys(kind.words for kind in kinds)
    return " or ".join(sorted(words, key=lambda word: word == "null"))


def _kinds(node: ast.expr) -> list[_Kind] | None:
    """The kinds of plain values that an annotation admits, or None if it admits anything else."""
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right])
    if not isinstance(node, ast.Subscript):
        plain = _PLAIN.get(ast.unparse(node))
        return None if plain is None else [plain]
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    match ast.unparse(node.value).rpartition(".")[2]:
        case "Literal":
            return [_literal(ast.literal_eval(part)) for part in parts]
        case "Optional":
            return _union([*parts, ast.Constant(None)])
        case "Union":
            return _union(parts)
        case "list" | "dict" as container:
            inside = _kinds(parts[-1])
            return None if inside is None else [_many(container, inside)]
    return None


def _union(parts: list[ast.expr]) -> list[_Kind] | None:
    found = [_kinds(part) for part in parts]
    return None if None in found else list(itertools.chain(*filter(None, found)))


def _literal(choice: Any) -> _Kind:
    return _Kind(str(choice), lambda value: value == choice and type(value) is type(choice), literal=True)


def _many(container: str, inside: list[_Kind]) -> _Kind:
    """A list, or a mapping from texts, with items of these kinds."""
    if container == "list":
        words = f"a list, each {_describe(inside)}"
        return _Kind(words, lambda value: isinstance(value, list) and all(_any_fits(inside, item) for item in value))
    words = f"a mapping of names to {_describe(inside)}"
    return _Kind(words, lambda value: isinstance(value, dict) and all(_any_fits(inside, v) for v in value.values()))


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
                found[item.target.id] = Field(annotation, _required(item.value))
    return found


def _required(default: ast.expr | None) -> bool:
    if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
        return not {keyword.arg for keyword in default.keywords} & {"default", "default_factory"}
    return default is None


def _function_fields(node: ast.FunctionDef) -> dict[str, Field] | None:
    if node.args.kwarg or node.args.vararg:
        return None
    positional = node.args.posonlyargs + node.args.args
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    return {
        arg.arg: Field(ast.unparse(arg.annotation) if arg.annotation else "Any", default is None)
        for arg, default in zip(positional + node.args.kwonlyargs, defaults, strict=True)
        if arg.arg != "self"
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
    """The file of a module below a folder, by its name in parts."""
    target = folder.joinpath(*filter(None, names))
    options = (target / "__init__.py", target.with_suffix(".py"))
    return next((option for option in options if option.is_file()), None)


def _opaque(path: Path) -> bool:
    """Whether a module has names that its source does not show: it is compiled, or has `__getattr__` or star imports."""
    return path.suffix != ".py" or any(
        (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
        for node in _parse(path).body
    )


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: Path | None, name: str) -> _Definition | None:
    """The class or function of this name in a file or in the files that it imports the name from."""
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
