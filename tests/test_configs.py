"""Every config file loads, says how it is run, and survives its own JSON."""

import ast
import shlex
from pathlib import Path

import pytest

from star_jax.commands import COMMANDS
from star_jax.config import difference, fields, from_json, load_config, to_json

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


def _run_config(name):
    return load_config(BY_NAME[f"configs/run/{name}.py"])


def test_the_two_presets_have_the_sizes_of_section_15():
    for name in ("recommended", "faithful"):
        values = fields(_run_config(name))
        graph = {path.removeprefix("train_graph."): value for path, value in values.items()}
        text = {path.removeprefix("train_text."): value for path, value in values.items()}
        encoder = {
            "dim": 200,
            "multiplier": 4,
            "layers": 2,
            "heads": 4,
            "pooling": "self_attention",
            "include_receiver": True,
            "activation": "leaky_relu",
            "batch_norm": True,
            "dual": True,
        }
        for field, value in encoder.items():
            assert graph[f"model.encoder.{field}"] == value, field
        assert graph["model.kernel_l2"] == 1e-5
        assert graph["optimizer.learning_rate"] == 1e-4
        assert graph["batch_size"] == 4096
        assert graph["plan.validate_epochs"] == 0.1
        assert graph["fanouts.total"] == (100, 10)
        assert (graph["adaptive.start"], graph["adaptive.stride"]) == (2, 20)
        assert text["tower.base"] == "intfloat/e5-mistral-7b-instruct"
        assert (text["lora.rank"], text["lora.alpha"]) == (8, 32.0)
        assert text["optimizer.learning_rate"] == 1e-4
        assert text["batch_size"] == {"recommended": 3072, "faithful": 3172}[name]


def test_the_presets_differ_in_what_was_added_alone():
    pair = (to_json(_run_config(name)) for name in ("faithful", "recommended"))
    changed = {line.split(":")[0] for line in difference(*pair)}
    assert {path for path in changed if path.startswith("train_graph.")} == {
        "train_graph.model.encoder.skip",
        "train_graph.model.encoder.dropout",
        "train_graph.model.decoder.dropout",
        "train_graph.model.decoder.match.enabled",
        "train_graph.model.features.activation",
        "train_graph.receiver_view",
    }
    assert changed >= {"train_text.batch_size", "train_text.microbatch_size", "train_text.mining"}
    assert all(path.startswith(("train_graph.", "train_text.")) for path in changed)


def test_the_quickstart_is_the_recommended_preset_made_small():
    pair = (to_json(_run_config(name)) for name in ("recommended", "quickstart"))
    changed = {line.split(":")[0] for line in difference(*pair)}
    inner = ("train_text.", "train_graph.adaptive.")
    assert {path for path in changed if not path.startswith(inner)} == {
        "train_graph.adaptive",
        "train_graph.model.encoder.dim",
        "train_graph.model.encoder.multiplier",
        "train_graph.fanouts.total",
        "train_graph.optimizer.learning_rate",
        "train_graph.plan.num_epochs",
        "train_graph.plan.budget_s",
        "train_graph.batch_size",
    }


def test_its_docstring_holds_a_command_that_runs_it(name):
    text = ast.get_docstring(ast.parse(BY_NAME[name].read_text(encoding="utf-8")))
    assert text
    commands = [
        words
        for line in text.splitlines()
        if name in line and (words := shlex.split(line, comments=True))[0] == "star"
    ]
    assert any(words[1] in COMMANDS and words[2] == name for words in commands)
