"""Content hashes of what a training, an answer or an artefact was made from: files, rows, values and code.

Code is the modules that compute, found by following the imports of an entry, at the top and inside functions. Modules
that only move data (records, paths, reports) or come after the model (metrics, decisions) do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaggle_llm
from kaggle_llm.base import records

if TYPE_CHECKING:
    import polars as pl

PACKAGE = Path(kaggle_llm.__file__).parent
# Rooms that compute from token ids; imports of other rooms are not followed.
COMPUTING = ("engines", "retrieval", "training", "tasks", "weights")
# Texts → words, rows → token ids, scores → answers.
AROUND_MODEL = ("base.words", "base.plain_text", "engines.prompts", "competition.spans", "competition.rankings")
FROM_TEXTS = (*COMPUTING, *AROUND_MODEL)
TEXTS_A_CHUNK = 4096  # texts that are joined at a time
# Attributes of a syntax tree that have no effect, or that some Python versions lack.
IGNORED_ATTRIBUTES = ("ctx", "kind", "type_comment", "type_params", "type_ignores")


def plain_value(value: Any) -> Any:
    """`value` as JSON: dataclasses as fields, frames and paths as content hashes; raises TypeError otherwise."""
    import polars as pl

    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return records.hash_content(value)
    if isinstance(value, pl.Series):
        value = value.to_frame()
    if isinstance(value, pl.DataFrame):
        return hash_frame(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if callable(getattr(value, "tolist", None)):  # numpy's arrays and numbers
        return value.tolist()
    raise TypeError(f"{value!r} ({type(value).__name__}) has no content hash: give paths, frames or plain values")


def hash_frame(frame: pl.DataFrame) -> str:
    """Hash of columns, types and rows in order, however the frame was put together."""
    digest = hashlib.sha256()
    for series in frame.iter_columns():
        for chunk in describe_series(series):
            digest.update(chunk)
    return digest.hexdigest()


def describe_series(series: pl.Series) -> Iterator[bytes]:
    """Bytes that differ where two series differ: lengths and contents, without a copy of the whole.

    Raises TypeError for a column of Python objects.
    """
    import polars as pl

    dtype = series.dtype
    yield json.dumps([series.name, str(dtype), series.len(), series.null_count()]).encode()
    if series.null_count():
        yield series.is_null().to_numpy().tobytes()
    if isinstance(dtype, pl.List | pl.Array):
        lists = series.arr.to_list() if isinstance(dtype, pl.Array) else series
        yield from describe_series(lists.list.len())
        yield from describe_series(lists.explode())
    elif isinstance(dtype, pl.Struct):
        for field in series.struct.fields:
            yield from describe_series(series.struct.field(field))
    elif dtype == pl.Binary:
        yield from describe_series(series.bin.encode("base64"))
    elif dtype == pl.String:
        yield from describe_series(series.str.len_bytes())
        for start in range(0, series.len(), TEXTS_A_CHUNK):
            yield str(series.slice(start, TEXTS_A_CHUNK).str.join("")[0] or "").encode()
    elif dtype in (pl.Categorical, pl.Enum, pl.Decimal, pl.Int128, pl.UInt128):  # codes differ between processes
        yield from describe_series(series.cast(pl.String))
    elif dtype == pl.Object:
        raise TypeError(f"column {series.name!r} holds Python objects, which have no content hash")
    else:
        yield series.to_physical().fill_null(0).to_numpy().tobytes()


def hash_code(*entries: str | Path, rooms: Sequence[str] = COMPUTING) -> str:
    """Hash of the code of these modules and of those that they import, without comments, docstrings and layout.

    entries: names of modules of this package, or files of an experiment's folder. rooms: whose modules count. A key
    with the token ids themselves needs no hash of the code that made them.
    """
    return records.hash_json({name: hash_source(path) for name, path in sorted(list_code(entries, rooms).items())})


def list_code(entries: Iterable[str | Path], rooms: Sequence[str] = COMPUTING) -> dict[str, Path]:
    """Name → path of the entries and of all files that they import and that compute."""
    listed: dict[str, Path] = {}
    files = [entry if isinstance(entry, Path) else find_module(entry) for entry in entries]
    waiting = [(path, PACKAGE.parent if path.is_relative_to(PACKAGE) else path.parent) for path in files if path]
    while waiting:
        path, home = waiting.pop()
        name = path.relative_to(home).with_suffix("").as_posix()
        if name in listed:
            continue
        listed[name] = path
        for imported in list_imports(path):
            if imported.startswith(f"{PACKAGE.name}."):
                module = find_module(imported) if does_count(imported, rooms) else None
                waiting += [(module, PACKAGE.parent)] if module else []
            elif home != PACKAGE.parent:
                waiting += [(file, home) for file in find_beside(imported, path, home)]
    return listed


def does_count(name: str, rooms: Sequence[str]) -> bool:
    """Whether a module's code counts; that of AROUND_MODEL only where `rooms` names it."""
    module = name.partition(".")[2]
    return module in rooms or (module.partition(".")[0] in rooms and module not in AROUND_MODEL)


def find_beside(name: str, path: Path, home: Path) -> Iterator[Path]:
    """The files of the experiment's folder `home` that an import in `path` may load, packages' __init__.py included."""
    parts = name.split(".")
    for folder in (parent for parent in path.parents if parent.is_relative_to(home)):
        for end in range(1, len(parts) + 1):
            stem = folder.joinpath(*parts[:end])
            yield from (file for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if file.is_file())


def find_module(name: str) -> Path | None:
    """The file of a module of this package; None for a room and for a name inside a module."""
    path = PACKAGE.parent / f"{name.replace('.', '/')}.py"
    return path if path.is_file() else None


def list_imports(path: Path) -> tuple[str, ...]:
    """Full names that a file imports, anywhere in it, without those that only types need."""
    return _read_code(path, path.stat().st_mtime_ns)[0]


def hash_source(path: Path) -> str:
    """Hash of a Python file's code, the same under every Python version."""
    return _read_code(path, path.stat().st_mtime_ns)[1]


@cache
def _read_code(path: Path, _: int) -> tuple[tuple[str, ...], str]:
    """What a file imports, and the hash of its code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(find_imports(tree))), records.hash_json(describe_node(tree))


def find_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):  # holds no statement
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [node.module] if node.module else []
            yield from (*inside, *(".".join([*inside, alias.name]) for alias in node.names))
        yield from find_imports(node)


def describe_node(node: Any) -> Any:
    """A syntax tree as JSON, the same under every Python version: `ast.dump` differs in empty fields."""
    if isinstance(node, list):
        return [describe_node(child) for child in node]
    if not isinstance(node, ast.AST):
        return node if isinstance(node, str | bool | int | None) else [repr(node)]  # 1.5 is not "1.5"
    described: dict[str, Any] = {"": type(node).__name__}
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = [child for child in value if not is_docstring(child)]
        if isinstance(node, ast.JoinedStr):
            value = [child for child in value if not is_empty_text(child)]
        if name not in IGNORED_ATTRIBUTES and value is not None and value != []:
            described[name] = describe_node(value)
    return described


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is a string alone: a docstring, or the text under a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_empty_text(node: ast.AST) -> bool:
    """Whether a part of an f-string is empty: Python 3.12 adds one at its end."""
    return isinstance(node, ast.Constant) and node.value == ""


def hash_module_of(value: Any, rooms: Sequence[str] = COMPUTING) -> str:
    """Hash of the module that defines a function, or an object's class."""
    module = getattr(value, "__module__", type(value).__module__)
    if module.startswith(f"{PACKAGE.name}."):
        return hash_code(module, rooms=rooms)
    file = importlib.import_module(module).__file__
    assert file is not None
    return hash_code(Path(file), rooms=rooms)
