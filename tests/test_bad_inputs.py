"""What users get wrong: one line that names it, exit code 2, and nothing half-written."""

import contextlib
import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from tests.pipeline.tables import mini
from tests.pipeline.text_market import write_tables

ROOT = Path(__file__).parent.parent
TINY_TEXT = ROOT / "configs/text/tiny.py"
TINY_GRAPH = ROOT / "configs/graph/tiny.py"
ONE_DEVICE = ("--mesh.data", 1)
GOLDEN = ROOT / "tests/golden"
IMPORT = """
from pathlib import Path
from star_jax.jobs.import_tables import ImportConfig

def get_config():
    return ImportConfig(source=Path({source!r}))
"""


def _import_config(folder, source):
    config = folder / "import.py"
    config.write_text(IMPORT.format(source=str(source)), encoding="utf-8")
    return config


def snapshot(folder):
    """Every file below a folder with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def check(outcome, message):
    assert outcome.code == 2, outcome.err
    assert len(outcome.errors) == 1, outcome.err
    assert outcome.err.endswith(f"{outcome.errors[0]}\n")
    assert re.search(message, outcome.errors[0]), outcome.errors[0]
    assert "Traceback" not in outcome.err


@pytest.fixture
def data(tmp_path):
    """A folder of input tables with a schema."""
    from star_jax.pipeline.tables.schema_file import schema_json

    folder = mini.write(tmp_path / "data", mini.tables())
    (folder / "schema.json").write_text(schema_json(mini.schema()), encoding="utf-8")
    return folder


def _set(file, column, row, value):
    def bend(folder):
        tables = mini.tables()
        tables[file][column][row] = value
        mini.write(folder, {file: tables[file]})

    return bend


def _column(file, column, change):
    """Changes a whole column; None drops it."""

    def bend(folder):
        table = mini.tables()[file]
        values = table.pop(column)
        mini.write(folder, {file: table if change is None else table | {column: change(values)}})

    return bend


def _empty(file):
    return lambda folder: mini.write(folder, {file: {c: [] for c in mini.tables()[file]}})


def _cut_short(name):
    def bend(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return bend


TABLES = {
    "missing column": (
        _column("save.parquet", "receiver", None),
        "missing column in save.parquet.*receiver",
    ),
    "wrong type": (
        _column("job_skill.parquet", "w", lambda values: ["heavy"] * len(values)),
        "wrong type in job_skill.parquet:w",
    ),
    "dangling id": (
        _set("save.parquet", "sender", 4, "nobody"),
        r"dangling id in save.parquet:sender: 1 rows, first row 5 \(sender 'nobody'\)",
    ),
    "duplicate id": (
        _set("job.parquet", "id", 1, "j0"),
        "duplicate id in job.parquet",
    ),
    "null time": (_set("events.parquet", "time", 3, None), "null in events.parquet:time"),
    "milliseconds": (
        _set("save.parquet", "t", 2, 1_600_000_000_000),
        "mixed time units in save.parquet:t|time.* in save.parquet:t",
    ),
    "unknown action": (
        _set("events.parquet", "action", 0, "CLIKC"),
        "unknown action in events.parquet:action.*CLIKC",
    ),
    "negative weight": (
        _set("job_skill.parquet", "w", 0, -1.0),
        "negative weight in job_skill.parquet:w",
    ),
    "empty table": (_empty("member.parquet"), "empty table in member.parquet"),
    "empty text": (_set("texts_job.parquet", "text", 1, " "), "empty text in texts_job.parquet"),
    "personal data": (
        _column("member.parquet", "city", lambda values: ["a.b@example.org"] * len(values)),
        "personal data in member.parquet:city|e-mail.* in member.parquet:city",
    ),
    "truncated Parquet": (_cut_short("events.parquet"), "events.parquet"),
    "no Parquet": (
        lambda folder: (folder / "job.parquet").write_text("not a table", encoding="utf-8"),
        "job.parquet",
    ),
    "missing file": (lambda folder: (folder / "save.parquet").unlink(), "save.parquet"),
    "corrupt schema": (
        lambda folder: (folder / "schema.json").write_text("{", encoding="utf-8"),
        "schema.json",
    ),
    "unknown schema field": (
        lambda folder: (folder / "schema.json").write_text(
            (folder / "schema.json").read_text("utf-8").replace('"time_unit"', '"time_units"'),
            encoding="utf-8",
        ),
        "schema.json.*time_unit",
    ),
    "file for a folder": (
        lambda folder: (shutil.rmtree(folder), folder.write_text("id\n1\n", encoding="utf-8")),
        "source .*data is a file, needed the folder that it lies in",
    ),
    "no folder": (shutil.rmtree, "source .*data does not exist"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables(star, data, tmp_path, case):
    bend, message = TABLES[case]
    bend(data)
    outcome = star("import", _import_config(tmp_path, data), "--workdir", tmp_path / "new/w")
    check(outcome, message)
    assert not (tmp_path / "new").exists()


CSV_FILES = {
    "a cell too many": (b"id,name\n0,a\n1,b,c\n", "Line: 3 Expected Number of Columns: 2 Found: 3"),
    "a cell too few": (b"id,name\n0,a\n1\n", "Line: 3 Expected Number of Columns: 2 Found: 1"),
    "an open quote": (b'id,name\n0,"a\n1,b\n', "Line: 2 Value with unterminated quote"),
    "an unnamed column": (
        b"id,name,\n0,a\n",
        "Line: 2 Expected Number of Columns: 3 Found: 2",
    ),
    "a name twice": (b"id,name,name\n0,a\n", "Line: 2 Expected Number of Columns: 3 Found: 2"),
    "Latin-1": ("id,name\n0,Münster\n".encode("latin-1"), "not utf-8 encoded"),
}


@pytest.mark.parametrize("case", CSV_FILES)
def test_bad_csv(star, data, tmp_path, case):
    content, message = CSV_FILES[case]
    (data / "skill.csv").write_bytes(content)
    schema = data / "schema.json"
    text = schema.read_text("utf-8").replace("skill.parquet", "skill.csv", 1)
    schema.write_text(text.replace("job_skill.csv", "job_skill.parquet"), encoding="utf-8")
    outcome = star("import", _import_config(tmp_path, data), "--workdir", tmp_path / "w")
    check(outcome, f"unreadable file in skill.csv.*{message}")
    assert not (tmp_path / "w").exists()


@pytest.fixture
def texts(tmp_path):
    """A working directory with small tables, for the text half."""
    write_tables(tmp_path / "w" / "tables")
    return tmp_path / "w"


@pytest.fixture
def base(tmp_path):
    """A pretrained BERT folder."""
    folder = tmp_path / "bert"
    shutil.copytree(GOLDEN / "tiny_bert", folder)
    return folder


def _flip_header(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8] ^= 0xFF
    path.write_bytes(content)


def _larger_vocabulary(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {
        word: max(vocabulary.values()) + 1 + i
        for i, word in enumerate(map(chr, range(0x4E00, 0x5E00)))
    }
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def _config_says(**values):
    def bend(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | values), encoding="utf-8")

    return bend


BASES = {
    "corrupt safetensors": (_flip_header, r"model\.safetensors"),
    "truncated safetensors": (_cut_short("model.safetensors"), r"model\.safetensors"),
    "wrong tokenizer": (_larger_vocabulary, r"tokenizer\.json has \d+ ids, config\.json says"),
    "tokenizer of a smaller model": (
        _config_says(vocab_size=30522),
        r"tokenizer\.json has 73 ids, config\.json says 30522: .*up to 511 fewer",
    ),
    "tokenizer with another end": (
        _config_says(sep_token_id=1),
        r"config\.json: sep_token_id is 1, tokenizer\.json has 3: they are of different models",
    ),
    "corrupt tokenizer": (_cut_short("tokenizer.json"), r"tokenizer\.json"),
    "unknown family": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}', "utf-8"),
        r"config\.json: model_type is 'gpt2', needed one of",
    ),
    "no model": (shutil.rmtree, "bert"),
}


@pytest.mark.parametrize("case", BASES)
def test_bad_base_models(star, texts, base, case):
    bend, message = BASES[case]
    bend(base)
    outcome = star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE, "--tower.base", base)
    check(outcome, message)
    assert not list(texts.rglob("*.partial"))
    assert not (texts / "text" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        (("train-text", TINY_TEXT), "tables .*run `star import` first"),
        (
            ("export-model", ROOT / "configs/export_model/all_formats.py"),
            "text .*run `star train-text` first",
        ),
        (("build-graph", ROOT / "configs/run/tiny.py"), "tables .*run `star import` first"),
        (
            ("append-edges", ROOT / "configs/graph/append.py"),
            "graph .*run `star build-graph` first",
        ),
        (("train-graph", TINY_GRAPH), "tables .*run `star import` first"),
        (("export-text", ROOT / "configs/run/tiny.py"), "run `star .*` first"),
        (("export-graph", ROOT / "configs/run/tiny.py"), "run `star .*` first"),
        (("evaluate", ROOT / "configs/run/tiny.py"), "run `star .*` first"),
        (("report", ROOT / "configs/run/tiny.py"), "run `star evaluate` first"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_stages_name_the_one_before(star, tmp_path, command, needs):
    outcome = star(*command, "--workdir", tmp_path / "w")
    check(outcome, needs)
    assert not any((tmp_path / "w").rglob("*"))


def test_a_damaged_artefact_is_named(star, texts):
    path = next((texts / "tables" / "texts").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-8])
    before = snapshot(texts)
    outcome = star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE)
    check(outcome, rf"{path.name} has \d+ bytes, needed \d+ \(as written\); remove")
    assert snapshot(texts) == before


@pytest.mark.slow
def test_another_config_or_other_tables_on_resume(star, texts):
    assert star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE).code == 0
    before = snapshot(texts)
    outcome = star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE, "--lora.rank", 4)
    check(outcome, r"begun with another config \(lora.rank: 2 -> 4\); give the old values")
    assert snapshot(texts) == before
    write_tables(texts / "tables", num_groups=30)
    check(
        star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE), "text was begun with tables"
    )


@contextlib.contextmanager
def full_disk(limit_bytes):
    """Writes beyond the limit fail as on a full disk, for root too; also those of pytest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit_bytes", [0, 512, 2048])
def test_a_full_disk_while_importing(star, data, tmp_path, limit_bytes):
    config = _import_config(tmp_path, data)
    with full_disk(limit_bytes):
        outcome = star("import", config, "--workdir", tmp_path / "w")
    check(outcome, r"File too large|No space left")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit_bytes", [0, 4096, 16384])
def test_a_full_disk_while_training(star, texts, limit_bytes):
    before = snapshot(texts)
    with full_disk(limit_bytes):
        outcome = star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE)
    check(outcome, r"File too large|No space left")
    assert not (texts / "text" / "manifest.json").exists()
    after = snapshot(texts)
    assert {path: after[path] for path in before} == before
    in_place = ("text", "text_tokens")  # Complete, or resumed from any state.
    assert {path.relative_to(texts).parts[0] for path in set(after) - set(before)} <= {*in_place}
    assert star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE).code == 0


def test_a_workdir_that_cannot_be_written(star, data, tmp_path):
    config = _import_config(tmp_path, data)
    if os.geteuid() == 0:  # Whom no permission stops.
        folder = Path("/proc/self/star")
    else:
        (tmp_path / "closed").mkdir(mode=0o555)
        folder = tmp_path / "closed" / "w"
    check(star("import", config, "--workdir", folder), re.escape(str(folder.parent)))
    check(star("import", config, "--workdir", config), r"import\.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--batch_sice", "8"), "--batch_sice is unknown; the nearest field is batch_size"),
        (("--batch_size", "many"), "--batch_size got 'many', needed int"),
        (
            ("--batch_size", "7"),
            "--batch_size 7: batch_size 7 is not a multiple of microbatch_size",
        ),
        (("--lora.rank", "0"), "--lora.rank 0: rank 0"),
        (("--lora.targets", "("), "--lora.targets .*no pattern"),
        (("--lora.targets", "nothing"), "lora.targets 'nothing' matches none of"),
        (("--tower.limits.job", "5000"), "limits.job 5000 is above the 2048 positions"),
        (("--optimizer.learning_rate=nan",), "--optimizer.learning_rate nan, needed a finite"),
        (("--plan.budget_s=nan",), "--plan.budget_s nan, needed a finite number"),
        (("--lora.alpha=nan",), "--lora.alpha nan, needed a finite number"),
        (("--seed=-1",), "--seed -1, needed 0 to 2147483647"),
        (("--mesh.fsdp", "16"), "mesh data 1 x fsdp 16 x tensor 1 does not fit the 8 cpu devices"),
    ],
)
def test_bad_config_values(star, texts, change, message):
    check(star("train-text", TINY_TEXT, "--workdir", texts, *ONE_DEVICE, *change), message)
    assert not (texts / "text" / "manifest.json").exists()
