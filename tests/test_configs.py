"""Every config file loads, says how it is run, and survives its own JSON."""

import ast
import shlex
from pathlib import Path

import pytest

from star_jax.cli import COMMANDS
from star_jax.config import fields, from_json, load_config, to_json

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
BY_NAME = {path.relative_to(ROOT).as_posix(): path for path in CONFIGS}


@pytest.fixture(params=BY_NAME)
def name(request):
    return request.param


def test_loads_and_round_trips(name):
    config = load_config(BY_NAME[name])
    assert from_json(type(config), to_json(config)) == config
    assert fields(config)


def test_its_docstring_holds_a_command_that_runs_it(name):
    text = ast.get_docstring(ast.parse(BY_NAME[name].read_text(encoding="utf-8")))
    assert text
    commands = [
        words
        for line in text.splitlines()
        if name in line and (words := shlex.split(line, comments=True))[0] == "star"
    ]
    assert any(words[1] in COMMANDS and words[2] == name for words in commands)
