"""`star import` on Apache Beam: the same tables, and the same said of what is wrong."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline.beam import tables
from star_jax.pipeline.beam.tables import BeamLoad
from star_jax.pipeline.tables.build import build
from star_jax.pipeline.tables.findings import InputProblemsError
from star_jax.pipeline.tables.schema_file import schema_json
from tests.jobs.test_beam import HERE, TWO_PROCESSES
from tests.pipeline.tables import mini
from tests.pipeline.tables.test_validation import PROBLEMS

pytestmark = [pytest.mark.extra("beam"), pytest.mark.slow]


def in_row_groups(data):
    """The same files, of which none is a single piece."""
    for path in data.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=17)


def pointed(raw):
    """Events that point to texts, and a schema that says so."""
    events = raw["events.parquet"]
    events["text"] = [
        f"{m}.0" if n % 3 else ("-1", None)[n % 2] for n, m in enumerate(events["sender"])
    ]
    return mini.schema(events=(mini.events_source(sender_text="text"),))


def with_csv(raw, schema):
    """Events and one of the edges as CSV."""
    for name in ("events", "save"):
        raw[f"{name}.csv"] = raw.pop(f"{name}.parquet")
    events = dataclasses.replace(schema.events[0], file="events.csv")
    save = dataclasses.replace(schema.edges[1], file="save.csv")
    return dataclasses.replace(schema, events=(events,), edges=(schema.edges[0], save))


@pytest.mark.parametrize("kind", ["pointers", "csv", "consent", "fix"])
def test_tables_are_the_same(tmp_path, kind):
    raw = mini.tables()
    schema = mini.schema()
    if kind == "consent":
        mini.mark(raw)
    if kind == "pointers":
        schema = pointed(raw)
    if kind == "csv":
        schema = with_csv(raw, schema)
    if kind == "fix":
        raw["save.parquet"]["sender"][0] += "  "
        raw["save.parquet"]["sender"][40] += "\t"
        PROBLEMS["duplicate event"][0](raw)
        PROBLEMS["duplicate edge"][0](raw)
    data = mini.write(tmp_path / "data", raw)
    in_row_groups(data)
    (data / "schema.json").write_text(schema_json(schema))
    config = ImportConfig(source=data, fix=kind == "fix")
    run(config, tmp_path / "alone")
    run(dataclasses.replace(config, beam=HERE, part_rows=25), tmp_path / "beam")
    digests = [artefacts.digest(tmp_path / name / "tables") for name in ("alone", "beam")]
    assert digests[0] == digests[1]
    assert [path.name for path in (tmp_path / "beam").iterdir()] == ["tables"]


BENT = {
    "rows": (
        "dangling sender",
        "dangling receiver",
        "dangling event",
        "duplicate edge",
        "duplicate event",
        "null time",
        "null weight",
        "negative weight",
        "unknown action",
        "early event",
        "blanks in ids",
        "duplicate text",
        "milliseconds",
    ),
    "columns": ("missing column", "unknown action", "e-mail values"),
    "times": ("fractional time", "negative weight"),
    "no rows": ("empty table", "negative weight"),
    "no file": ("missing file", "negative weight"),
    "nodes": ("null id", "boolean id"),
}


def problems(folder, data, **options):
    out = folder / "tables"
    out.mkdir(parents=True)
    with pytest.raises(InputProblemsError) as error:
        build(data, mini.schema(), out, mini.LIMITS, seed=0, fix=False, **options)
    found = [dataclasses.asdict(problem) for problem in error.value.problems]
    return sorted(found, key=lambda p: (p["kind"], p["where"]))


@pytest.mark.parametrize("names", BENT.values(), ids=BENT)
def test_problems_are_the_same(tmp_path, names):
    raw = mini.tables()
    for name in names:
        PROBLEMS[name][0](raw)
    data = mini.write(tmp_path / "raw", raw)
    in_row_groups(data)
    load = BeamLoad(HERE, tmp_path / "scratch", 25, mini.LIMITS, fix=False)
    expected = problems(tmp_path / "alone", data)
    assert problems(tmp_path / "beam", data, load=load) == expected


def test_a_file_that_breaks_off_is_named_and_its_cells_are_not(tmp_path, caplog):
    raw = mini.tables()
    schema = with_csv(raw, mini.schema())
    data = mini.write(tmp_path / "data", raw)
    (data / "schema.json").write_text(schema_json(schema))
    with (data / "save.csv").open("a") as file:
        file.write("a secret,j0\n")
    config = ImportConfig(source=data, beam=HERE)
    expected = r"^rows of edge member__save__job/1-: unreadable file in save.csv: needed a whole"
    with pytest.raises(InputError, match=expected) as error:
        run(config, tmp_path / "beam")
    assert "secret" not in str(error.value) + caplog.text


# The runner's thread minds how a worker ends that is told to, amid a pipeline that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_import_goes_on_where_a_worker_failed(tmp_path, monkeypatch):
    data = mini.write(tmp_path / "data", mini.tables())
    in_row_groups(data)
    (data / "schema.json").write_text(schema_json(mini.schema()))
    run(ImportConfig(source=data), tmp_path / "alone")
    config = ImportConfig(source=data, beam=TWO_PROCESSES, part_rows=25)
    workdir = tmp_path / "beam"
    lend = tables._lend_tables

    def in_the_way(db, plan):
        lend(db, plan)
        plan.part("edge member__save__job/000002").mkdir(parents=True)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_lend_tables", in_the_way)
        expected = r"^part edge member__save__job/000002: IsADirectoryError: .*goes on with what is"
        with pytest.raises(InputError, match=expected):
            run(config, workdir)
    assert [path.name for path in workdir.iterdir()] == [".import_parts"]
    (wrong,) = workdir.glob(".import_parts/*/parts/edge member__save__job/000002.parquet")
    wrong.rmdir()
    done = {path: path.stat().st_mtime_ns for path in workdir.glob(".import_parts/*/parts/*/*.*")}
    assert done
    bring = tables._bring

    def kept(db, plan, table, parts):
        assert {path: path.stat().st_mtime_ns for path in done} == done
        bring(db, plan, table, parts)

    told = min(path for path in done if path.suffix == ".json")
    content = told.read_text()
    told.write_text(content.replace('"num_rows": ', '"num_rows": 1'))
    with pytest.raises(InputError, match=r"holds \d+ rows of .*, needed \d+; remove it$"):
        run(config, workdir)
    told.write_text(content)
    done[told] = told.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_bring", kept)
        run(config, workdir)
    digests = [artefacts.digest(tmp_path / name / "tables") for name in ("alone", "beam")]
    assert digests[0] == digests[1]
