"""The house rules of the source tree, read from the source itself."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "star_jax"
LAYERS = (
    ("config", "shapes", "trees", "artefacts", "sorting"),
    ("losses", "parallel", "embeddings", "evaluation"),
    ("text", "graph", "train", "serving"),
    ("pipeline",),
    ("jobs", "commands"),
    ("arguments",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ONLY_IN = {  # Libraries that one place wraps for all others.
    "jraph": ("star_jax/graph/segments.py",),
    "apache_beam": ("star_jax/pipeline/beam/steps.py",),
    "grain": ("star_jax/pipeline/",),
    "tensorflow_datasets": ("star_jax/pipeline/", "data/"),
    "tensorflow": (),
    "torch": ("star_jax/pipeline/interop.py",),
    "peft": ("star_jax/pipeline/interop.py",),
    "sentence_transformers": ("star_jax/pipeline/interop.py",),
    "sklearn": ("star_jax/pipeline/consumers/fits.py",),
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_CODE = sorted(
    path
    for folder in ("star_jax", "configs", "data", "tests", "launch", "bench")
    for path in (ROOT / folder).rglob("*.py")
)


def _name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in SOURCES}


def _imports(path):
    """Modules that a file imports, anywhere in it; `from a import b` counts b if it is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


def _package(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_package_has_its_place():
    names = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert names - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_point_left_only(path):
    own = _package(_name(path))
    for module in _imports(path):
        other = _package(module)
        if module.split(".")[0] != "star_jax" or not own or not other or other == own:
            continue
        same_base = RANK[own] == RANK[other] == 0
        assert RANK[other] < RANK[own] or same_base, f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_wrapped_libraries_stay_in_their_place(path):
    where = path.relative_to(ROOT).as_posix()
    for module in _imports(path):
        library = module.split(".")[0]
        allowed = ONLY_IN.get(library)
        assert allowed is None or where.startswith(allowed), f"{where} imports {library}"


def test_no_import_cycle():
    graph = {
        name: {m for m in _imports(path) if m in MODULES and m != name}
        for name, path in MODULES.items()
    }
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"import cycle {' -> '.join([*open_, name])}"
        if name not in done:
            open_.append(name)
            for other in sorted(graph[name]):
                visit(other)
            open_.pop()
            done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def _config_fields():
    """Fields of every frozen dataclass of the package: (class, field)."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                "frozen=True" in ast.unparse(decorator) and "dataclass" in ast.unparse(decorator)
                for decorator in node.decorator_list
            ):
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and not _is_mark(item):
                        yield f"{_name(path)}.{node.name}", ast.unparse(item.target)


def _is_mark(item):
    """Whether pydantic reads the field: its own settings, or the one literal that tells a union."""
    one_literal = re.fullmatch(r"Literal\['\w+'\]", ast.unparse(item.annotation))
    return ast.unparse(item.target).startswith("__") or one_literal


def test_every_config_field_is_read():
    read = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = [f"{owner}.{field}" for owner, field in _config_fields() if field not in read]
    assert not unread


def test_the_field_test_sees_the_configs():
    from star_jax.jobs.run import RunConfig

    seen = {field for owner, field in _config_fields() if owner.endswith(".RunConfig")}
    assert seen == {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize(
    "module", ["star_jax.cli", "star_jax.jobs.import_tables", "star_jax.jobs.run"]
)
def test_neither_tensorflow_nor_torch_is_imported(module):
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "star_jax" in imported
    assert not imported & {"tensorflow", "torch"}
    if module != "star_jax.jobs.run":
        assert not imported & {"jax", "flax"}, "slow to start"
    if module == "star_jax.cli":
        assert not imported & {"jax", "flax", "numba", "pandas", "transformers"}, "slow to start"
