"""Configs: frozen dataclasses that Python files return; loaded, overridden, checked, serialised.

A field is named by its full path, `text.lora.rank`. What the user got wrong is an `InputError`
of one line; the command line prints it and exits with code 2.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import re
import runpy
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError

C = TypeVar("C")

_NUM_SEEDS = 2**31  # JAX cuts longer ones short without a word.
_MESH = "mesh."  # Paths of fields that say where a job runs.


class InputError(ValueError):
    """What the user gave is wrong: a file, a table, a config value. The message is one line."""


def load_config(path: Path) -> Any:
    """Runs a config file's `get_config()` and checks the types of every field it returns.

    Raises:
      InputError: The file is missing, does not run, or returns a config with a wrong value.
    """
    if not path.is_file():
        raise InputError(f"config {path} does not exist, needed a Python file with get_config()")
    config = call_in_file(path, "get_config", "config")
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise InputError(
            f"config {path}: get_config() returned {type(config).__name__}, needed a config"
        )
    try:
        return from_json(type(config), to_json(config))
    except ValueError as error:
        raise InputError(f"config {path}: {error}") from error


def call_in_file(path: Path, function: str, what: str) -> Any:
    """Runs a Python file of the user and calls one of its functions.

    Args:
      path: The file.
      function: Its name.
      what: The file is, for the message.

    Raises:
      InputError: There is no such function, or the file or the function raised: with its line.
    """
    names: dict[str, Any] = {}
    try:
        names = runpy.run_path(str(path))
        if function in names:
            return names[function]()
    except (Exception, SystemExit) as error:  # User code may raise anything.
        raise InputError(f"{what} {_line_of(error, path)}: {_one_line(error, names)}") from error
    raise InputError(f"{what} {path} has no {function}()")


def override(config: C, args: Sequence[str]) -> C:
    """Returns the config with `--a.b value` (or `--a.b=value`) applied; checks run once at the end.

    Raises:
      InputError: An unknown name, a value of the wrong type, or a failed check.
    """
    values: dict[str, list[str]] = {}
    name = ""
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            name = name.replace("-", "_")
            if name in values:
                raise InputError(f"--{name} is given twice")
            values[name] = [value] if equals else []
        elif not name:
            raise InputError(f"{arg!r} is no option, needed --a.b value")
        else:
            values[name].append(arg)
    changes: dict[str, Any] = {}
    for name, words in values.items():
        hint = _hint(config, name)
        node = changes
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _parse(name, hint, words)
        _check_numbers(f"--{name}", node[leaf])
    return _replace(config, changes, "")


def to_json(config: object) -> str:
    """The config as JSON; `from_json` reads it back to an equal config."""
    dumped = TypeAdapter(type(config)).dump_python(config, mode="json", warnings=False)
    return json.dumps(dumped, indent=2)


def from_json(cls: type[C], text: str) -> C:
    """Reads a config strictly: no field may be unknown, missing or of another type.

    Raises:
      InputError: Naming the first field that is wrong.
    """
    adapter = TypeAdapter(cls)
    try:
        config = adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(_first_error(error)) from error
    read = _flatten(json.loads(text))
    for path, value in read.items():
        _check_numbers(path, value)
    known = _flatten(json.loads(to_json(config)))
    for path in read:
        if path not in known:
            raise InputError(f"{path} is unknown{_did_you_mean(path, known)}")
    for path in known:
        if path not in read:
            raise InputError(f"{path} is missing, needed by {cls.__name__}")
    return config


def difference(a_json: str, b_json: str) -> list[str]:
    """Lines `path: old -> new` for every field in which two configs differ."""
    a, b = _flatten(json.loads(a_json)), _flatten(json.loads(b_json))
    absent = "(absent)"
    return [
        f"{path}: {_shown(a, path, absent)} -> {_shown(b, path, absent)}"
        for path in [*a, *(path for path in b if path not in a)]
        if path not in a or path not in b or a[path] != b[path]
    ]


def check_same(saved_json: str, config: object, where: Path | str) -> None:
    """Stops a run that would go on with another config than the one it began with.

    The mesh may differ: a run can go on where there are other devices. What is defined by their
    number goes on by the new one: negatives within a device, steps of devices that compute apart.

    Raises:
      InputError: With the difference.
    """
    found = difference(saved_json, to_json(config))
    changed = [name for name in found if not name.startswith(_MESH)]
    if changed:
        raise InputError(
            f"{where} was begun with another config ({', '.join(changed)}); "
            "give the old values, another --workdir, or remove that folder"
        )


def fields(config: object, prefix: str = "") -> dict[str, Any]:
    """Full path -> value of every field that is not itself a config."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType] # a config
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= fields(value, f"{path}.")
        else:
            found[path] = value
    return found


def _hint(config: object, path: str) -> Any:
    """Type of the field at a path, or an error that names the nearest field."""
    node = config
    hint: Any = type(config)
    for name in path.split("."):
        hints = get_type_hints(type(node)) if dataclasses.is_dataclass(node) else {}
        if name not in hints or not hasattr(node, name):
            raise InputError(f"--{path} is unknown{_did_you_mean(path, fields(config))}")
        node, hint = getattr(node, name), hints[name]
    if dataclasses.is_dataclass(node) and not _optional(hint):
        inside = ", ".join(f"--{path}.{field.name}" for field in dataclasses.fields(node))
        raise InputError(f"--{path} is a group, needed one of its fields: {inside}")
    return hint


def _parse(path: str, hint: Any, words: list[str]) -> Any:
    """The value of one option, parsed by tyro as the field's type."""
    if _optional(hint) and words == ["None"]:
        return None
    if hint is bool and not words:
        words = ["True"]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # One line instead of tyro's box.
            return tyro.cli(hint, args=words, console_outputs=False)
    except SystemExit as error:  # How tyro says that it could not parse.
        got = " ".join(words) if words else "nothing"
        raise InputError(f"--{path} got {got!r}, needed {_type_name(hint)}") from error


def _check_numbers(path: str, value: Any) -> None:
    """Refuses what passes for a number: NaN and infinities, and seeds that no generator takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path} {value}, needed a finite number")
    is_seed = path.removeprefix("--").rsplit(".", 1)[-1] == "seed"
    if is_seed and isinstance(value, int) and not 0 <= value < _NUM_SEEDS:
        raise InputError(f"{path} {value}, needed 0 to {_NUM_SEEDS - 1}")
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list | tuple) else inner
    for name, each in inner:
        _check_numbers(f"{path}.{name}", each)


def _replace(config: C, changes: Mapping[str, Any], prefix: str) -> C:
    nested = {
        name: _replace(getattr(config, name), value, f"{prefix}{name}.")
        if dataclasses.is_dataclass(getattr(config, name)) and isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    try:
        return dataclasses.replace(config, **nested)  # pyright: ignore[reportArgumentType] # a dataclass
    except InputError:
        raise
    except ValueError as error:  # A failed check in __post_init__.
        given = ", ".join(f"--{prefix}{name} {value}" for name, value in nested.items())
        raise InputError(f"{given}: {error}") from error


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is not None:
        return str(hint).replace("typing.", "").replace("pathlib.", "")
    return getattr(hint, "__name__", str(hint))


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of JSON by path; lists are leaves unless they hold objects."""
    if isinstance(value, dict) and value:
        items = [(f"{prefix}.{name}" if prefix else name, v) for name, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = [(f"{prefix}.{i}", v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for path, inner in items:
        found |= _flatten(inner, path)
    return found


def _shown(values: Mapping[str, Any], path: str, absent: str) -> str:
    return json.dumps(values[path], ensure_ascii=False) if path in values else absent


def _did_you_mean(path: str, known: Mapping[str, Any]) -> str:
    """The nearest known path; one with the same last name is near even in another group."""
    near = difflib.get_close_matches(path, list(known), n=1, cutoff=0.6)
    if not near:
        last = path.rsplit(".", 1)[-1]
        names = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [names[n] for n in difflib.get_close_matches(last, list(names), n=1, cutoff=0.6)]
    return f"; the nearest field is {near[0]}" if near else "; no field has a similar name"


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    got = first.get("input")
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "needed")
    if not path:
        return message
    if isinstance(got, dict):  # A check across fields: the message names their values.
        return f"{path}: {message}"
    return f"{path} got {got!r}: {message}"


def _line_of(error: BaseException, path: Path) -> str:
    """The last line of the file that ran, also where it called something that failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _one_line(error: BaseException, names: Mapping[str, Any]) -> str:
    """The message, with the nearest field where a config has no field of the name given."""
    text = " ".join(str(error).split())
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown and dataclasses.is_dataclass(names.get(unknown[1])):
        known = {field.name: None for field in dataclasses.fields(names[unknown[1]])}
        return f"{unknown[1]} has no field {unknown[2]}{_did_you_mean(unknown[2], known)}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = isinstance(error, InputError) or (frames and frames[-1].name == "__post_init__")
    if isinstance(error, ValueError) and ours:  # A check of a config: its message says it all.
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
