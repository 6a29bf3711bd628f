"""Schema files: read as written, and refused with the name of what is wrong."""

import dataclasses
from math import nan

import pytest

from star_jax.config import InputError
from star_jax.pipeline.tables.schema import (
    Deidentify,
    Negatives,
    SplitColumn,
    TimeCuts,
    TimeFractions,
    TimeWindows,
)
from star_jax.pipeline.tables.schema_file import read_schema, schema_json
from tests.pipeline.tables import mini


@pytest.mark.parametrize(
    "split",
    [
        TimeWindows(train=3, val=2, test=1, graph=None),
        TimeCuts(val_from=3, test_from=5),
        TimeFractions(val_share=0.1, test_share=0.1),
        SplitColumn(val_name="dev"),
    ],
)
def test_json_gives_back_the_same_schema(split, tmp_path):
    schema = mini.schema(
        events=(mini.events_source(split="part"),),
        split=split,
        deidentify=Deidentify(key_env="KEY"),
    )
    path = tmp_path / "schema.json"
    path.write_text(schema_json(schema))
    assert read_schema(path) == schema


def test_python_files_give_their_schema(tmp_path):
    path = tmp_path / "schema.py"
    path.write_text("from tests.pipeline.tables import mini\nget_schema = mini.schema\n")
    assert read_schema(path) == mini.schema()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": 3}', r"schema.json: name: Input should be a valid string"),
        ('{"nodes": [{"type": "a", "file": "a", "tyme": "t"}]}', r"nodes.0.tyme: is no field of a"),
        ("{", r"schema.json: Invalid JSON"),
    ],
)
def test_json_mistakes_name_their_field(content, message, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_schema(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", r"schema .*schema.py has no get_schema\(\)"),
        ("def get_schema(:", r"schema.py:1: SyntaxError: invalid syntax"),
        ("def get_schema():\n    return undefined", r"schema.py:2: NameError: name 'undefined' is"),
        ("def get_schema():\n    return 3", r"get_schema\(\) returned int, needed a Schema"),
        ("def get_schema():\n    return {}['a']", r"schema .*schema.py:2: KeyError: 'a'$"),
        ("open('/nowhere')", r"schema .*schema.py:1: FileNotFoundError: "),
        ("import sys\nsys.exit('no')", r"schema .*schema.py:2: SystemExit: no$"),
    ],
)
def test_python_mistakes_name_their_file(content, message, tmp_path):
    path = tmp_path / "schema.py"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_schema(path)


def test_a_missing_schema_is_named(tmp_path):
    with pytest.raises(InputError, match=r"does not exist, needed a \.py or \.json file"):
        read_schema(tmp_path / "none.json")


def _task(**changes):
    return {"tasks": (mini.apply_task(**changes),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": mini.schema().nodes[:2]}, r"edges job__has__skill: node type 'skill' has no en"),
        ({"nodes": mini.schema().nodes + mini.schema().nodes[:1]}, r"nodes: 'member' is there twi"),
        ({"tasks": ()}, r"tasks is empty"),
        (_task(edge_types=("member__like__job",)), r"edge type 'member__like__job' is none of"),
        (_task(receiver="skill"), r"no events from member to skill and no fixed pairs"),
        (_task(labels={"SKIP": 0}), r"tasks.apply: no action has label 1"),
        (_task(negatives=Negatives(near="city")), r"negatives.near 'city' is none of"),
        ({"allowed": ("null",)}, r"allowed has 'null', needed one of"),
        ({"split": SplitColumn()}, r"the split is by column, needed events.split"),
        ({"events": (mini.events_source(time=None),)}, r"split is by time, needed events.time"),
        (
            {"events": (mini.events_source(receiver_text="x"),)},
            r"column 'x' points to texts of job, needed a text source with an id",
        ),
        (
            {"nodes": (dataclasses.replace(mini.schema().nodes[0], deidentify=True),)},
            r"node type 'job' has no entry|needed deidentify as well",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mini.schema(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mini.apply_task(labels={"A": 2}), "action 'A' has label 2"),
        (lambda: mini.apply_task(class_weights=(0.0, 1.0)), "class_weights .* needed above 0"),
        (lambda: mini.apply_task(class_weights=(1.0, nan)), "class_weights .* needed above 0"),
        (lambda: Negatives(train={"uniform": nan}), r"negatives.train\['uniform'\] is nan"),
        (lambda: TimeFractions(val_share=0.1, test_share=nan), "together below 1"),
        (lambda: Negatives(train={"hard": 1.0}), "negatives.train has kind 'hard', needed one of"),
        (lambda: Negatives(train={"uniform": 0.0}), r"negatives.train\['uniform'\] is 0.0"),
        (lambda: Negatives(train={"near": 1.0}), "has 'near', needed negatives.near as well"),
        (lambda: TimeCuts(val_from=5, test_from=5), "val_from 5 >= test_from 5"),
        (lambda: TimeFractions(val_share=0.5, test_share=0.5), "together below 1"),
        (lambda: Deidentify(), "needs key_file or key_env, one of them"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
