"""The layout star-tidy-1 in all its variations: it works, or it says why not."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline.tables import read
from star_jax.shapes import NO_TIME
from tests.pipeline.tables import tidy_folder as tidy


def _imported(tmp_path, content, **meta):
    meta = {"name": "generated", "time_unit": "ordinal"} | meta
    data = tidy.write(tmp_path / "data", content, **meta)
    run(ImportConfig(source=data), tmp_path / "run")
    return tmp_path / "run/tables"


def test_everything_a_folder_holds_is_taken(tmp_path):
    content = tidy.tables()
    out = _imported(tmp_path, content)
    meta = read.read_meta(out)
    assert (meta.dataset, meta.time_unit) == ("generated", "ordinal")
    assert meta.reference == {"methods": {"x": {"auc_uniform": 0.5}}}
    assert meta.node_types["member"].dense == ["points"]
    assert meta.node_types["job"].categorical == {"site": 3}
    nodes = read.read_nodes(out, "job").to_pydict()
    assert nodes["id"] == content["nodes/job.parquet"]["key"]
    vocabulary = pq.read_table(out / "vocab/job.site.parquet").to_pydict()
    sites = dict(zip(vocabulary["code"], vocabulary["value"], strict=True)) | {0: None}
    assert [sites[c] for c in nodes["cat_site"]] == content["nodes/job.parquet"]["site"]
    assert read.read_texts(out, "skill").text == [f"text {i}" for i in range(tidy.NUM_SKILLS)]
    assert set(read.read_texts(out, "skill").kind) == {"skill"}
    assert set(read.read_texts(out, "job").kind) == {"job"}
    assert set(read.read_texts(out, "member").kind) == {"profile"}
    kinds = {edge.name: edge.kind for edge in meta.edge_types}
    assert kinds == {"job__has__skill": "attribute", "member__apply__job": "interaction"}
    assert meta.tasks["apply"].edge_types == ["member__apply__job"]
    edges = read.read_edges(out, "member__apply__job")
    assert edges.split.tolist() == [1] * 80 + [2] * 20 + [3] * 20


def test_fixed_pairs_are_kept_as_they_are(tmp_path):
    content = tidy.tables()
    out = _imported(tmp_path, content)
    texts = read.read_texts(out, "member")
    for split in read.SPLITS:
        raw, pairs = content[f"eval/pairs_{split}.parquet"], read.read_pairs(out, "apply", split)
        assert pairs.sender.tolist() == raw["member"]
        assert pairs.receiver.tolist() == raw["job"]
        assert pairs.label.tolist() == raw["label"]
        assert pairs.negative.tolist() == ["", "uniform"] * (len(raw["label"]) // 2)
        assert pairs.group.tolist() == [n // 2 for n in range(len(raw["label"]))]
        assert pairs.t.tolist() == raw["t"]
        assert pairs.warm_sender.tolist() == raw["warm_member"]
        assert pairs.warm_receiver.tolist() == raw["warm_job"]
        for row, pointer in enumerate(raw["member_text"]):
            text = texts.text[pairs.sender_text[row]] if pairs.sender_text[row] >= 0 else ""
            assert text == content["texts/member.parquet"]["text"][pointer]
        assert np.all(pairs.receiver_text == pairs.receiver)
        assert np.all(pairs.sender_resume == -1)
        assert np.all(np.isnan(pairs.true_logit))


def test_fixed_rankings_join_the_rows_of_warm_members(tmp_path):
    content = tidy.tables()
    out = _imported(tmp_path, content)
    raw, events = content["eval/rank_test.parquet"], content["interactions.parquet"]
    ranking = read.read_ranking(out, "apply", "test")
    assert ranking is not None
    assert ranking.candidates.tolist() == content["eval/candidates_test.parquet"]["job"]
    rows = [n for n, warm in enumerate(raw["warm_member"]) if warm]
    assert ranking.sender.tolist() == sorted({raw["member"][n] for n in rows})
    for q, member in enumerate(ranking.sender):
        own = [n for n in rows if raw["member"][n] == member]
        assert ranking.relevant[q].tolist() == sorted({raw["job"][n] for n in own})
        assert ranking.t[q] == raw["t"][own[0]]
        earlier = {events["job"][n] for n in range(tidy.CUTS[1]) if events["member"][n] == member}
        assert ranking.excluded[q].tolist() == sorted(earlier)
    assert read.read_ranking(out, "accept", "test") is None


@pytest.mark.parametrize(
    "variation",
    [
        {"member_texts": False},
        {"job_texts": False},
        {"member_texts": False, "job_texts": False},
        {"times": False},
        {"times": False, "evaluation": False},
        {"evaluation": False},
        {"sender": "user", "receiver": "film", "relation": "watch"},
        {"word": "求人 навыки Zürich ñandú"},
    ],
)
def test_variations_work(variation, tmp_path):
    content = tidy.tables(**variation)
    out = _imported(tmp_path, content)
    meta = read.read_meta(out)
    ends = variation.get("sender", "member"), variation.get("receiver", "job")
    task = meta.tasks["apply"]
    assert (task.sender, task.receiver) == ends
    assert task.edge_types == [f"{ends[0]}__{variation.get('relation', 'apply')}__{ends[1]}"]
    for split in read.SPLITS:
        pairs = read.read_pairs(out, "apply", split)
        assert set(pairs.label.tolist()) == {0, 1}
        if not variation.get("times", True):
            assert np.all(pairs.t == NO_TIME)
        has_texts = variation.get("job_texts", True)
        assert np.all((pairs.receiver_text >= 0) == has_texts)
        if not variation.get("member_texts", True):
            assert np.all(pairs.sender_text == -1)
    assert meta.node_types[ends[0]].has_texts == variation.get("member_texts", True)
    assert meta.node_types[ends[1]].has_texts == variation.get("job_texts", True)
    word = variation.get("word", "text")
    assert read.read_texts(out, "skill").text[0] == f"{word} 0"


def test_texts_of_others_and_keys_as_texts(tmp_path):
    content = tidy.tables()
    del content["nodes/skill.parquet"]["name"]
    content["nodes/place.parquet"] = {"idx": [0, 1], "key": ["10", "20"]}
    content["edges/job__in__place.parquet"] = {"src": [0, 1], "dst": [1, 0]}
    content["nodes/boss.parquet"] = {"idx": [0, 1], "key": ["site:1", "site:2"]}
    content["edges/boss__post__job.parquet"] = {"src": [0, 1], "dst": [1, 0], "w": [1.0, 2.0]}
    out = _imported(tmp_path, content)
    assert read.read_texts(out, "skill").text == ["s0", "s1", "s2", "s3"]
    assert read.read_texts(out, "place").text == []  # Numbers say nothing.
    assert read.read_texts(out, "boss").text == []  # An entity's id is no description.
    assert read.read_edges(out, "boss__post__job").weight.tolist() == [1.0, 2.0]


def test_a_recruiter_who_accepts_makes_a_second_task(tmp_path):
    content = tidy.tables()
    events = content["interactions.parquet"]
    bosses = [n % 3 for n in range(tidy.NUM_EVENTS)]
    labels = [n % 2 for n in range(tidy.NUM_EVENTS)]
    content["nodes/recruiter.parquet"] = {"idx": [0, 1, 2], "key": ["a:1", "a:2", "a:3"]}
    content["eval/accept.parquet"] = {
        "recruiter": bosses,
        "label": labels,
        **{name: events[name] for name in ("member", "job", "t", "split", "member_text")},
    }
    content["edges/recruiter__accept__member.parquet"] = {
        name: [v for v, label in zip(values, labels, strict=True) if label]
        for name, values in (
            ("src", bosses),
            ("dst", events["member"]),
            ("t", events["t"]),
            ("split", events["split"]),
        )
    }
    out = _imported(tmp_path, content)
    meta = read.read_meta(out)
    assert list(meta.tasks) == ["apply", "accept"]
    task = meta.tasks["accept"]
    assert (task.sender, task.receiver) == ("recruiter", "member")
    assert task.edge_types == ["recruiter__accept__member"]
    assert task.negatives == ["impressed"]
    pairs = read.read_pairs(out, "accept", "val")
    low, high = tidy.CUTS
    assert pairs.sender.tolist() == bosses[low:high]
    assert pairs.receiver.tolist() == events["member"][low:high]
    assert pairs.label.tolist() == labels[low:high]
    assert pairs.negative.tolist() == ["" if label else "impressed" for label in labels[low:high]]
    assert pairs.group.tolist() == list(range(high - low))
    assert np.all(pairs.sender_text == -1)
    expected = read.read_pairs(out, "apply", "val").sender_text[::2]
    assert pairs.receiver_text.tolist() == expected.tolist()


def test_edges_are_made_of_the_events_where_none_repeat_them(tmp_path):
    content = tidy.tables()
    del content["edges/member__apply__job.parquet"]
    out = _imported(tmp_path, content)
    edges = read.read_edges(out, "member__apply__job")
    assert sorted(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True)) == sorted(
        zip(
            content["interactions.parquet"]["member"],
            content["interactions.parquet"]["job"],
            strict=True,
        )
    )
    assert np.bincount(edges.split).tolist() == [0, 80, 20, 20]


def test_without_a_split_column_time_splits(tmp_path):
    content = tidy.tables(evaluation=False)
    del content["interactions.parquet"]["split"]
    del content["edges/member__apply__job.parquet"]["split"]
    out = _imported(tmp_path, content)
    assert [len(np.unique(read.read_pairs(out, "apply", s).group)) for s in read.SPLITS] == [
        96,
        12,
        12,
    ]
    edges = read.read_edges(out, "member__apply__job")
    assert np.bincount(edges.split).tolist() == [0, 96, 12, 12]


def test_opted_out_members_leave_a_tidy_folder_too(tmp_path):
    content = tidy.tables()
    content["nodes/member.parquet"]["opted_out"] = [i == 4 for i in range(tidy.NUM_MEMBERS)]
    out = _imported(tmp_path, content)
    assert "site:4" not in read.read_nodes(out, "member")["id"].to_pylist()
    pairs = read.read_pairs(out, "apply", "train")
    raw = content["eval/pairs_train.parquet"]["member"]
    assert len(pairs.sender) == sum(member != 4 for member in raw)


def _without(name):
    return lambda content: content.pop(name)


def _renamed(old, new):
    return lambda content: content.update({new: content.pop(old)})


def _no_way_to_split(content):
    del content["interactions.parquet"]["split"]
    content["interactions.parquet"]["t"][3] = None


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (_without("interactions.parquet"), r"has no interactions.parquet, needed the events"),
        (
            lambda c: [c.pop(n) for n in list(c) if n.startswith("nodes/")],
            r"has no nodes/<type>.parquet, needed the layout star-tidy-1, or a schema.json",
        ),
        (
            _without("nodes/job.parquet"),
            r"interactions.parquet has columns member, job, .*needed two that name node types "
            r"\(member, skill\)",
        ),
        (
            _without("nodes/skill.parquet"),
            r"edges job__has__skill: node type 'skill' has no entry in nodes \['job', 'member'\]",
        ),
        (
            _without("eval/pairs_val.parquet"),
            r"has eval/pairs_train, eval/pairs_test but no eval/pairs_val; needed all of them",
        ),
        (
            _renamed("edges/job__has__skill.parquet", "edges/job_skill.parquet"),
            r"edges/job_skill.parquet: needed a name like sender__relation__receiver",
        ),
        (_no_way_to_split, r"has neither a split column nor a time in every row"),
        (
            lambda c: c["eval/pairs_val.parquet"].update(neg_type=["odd"] * 40),
            r"unknown negative in eval/pairs_val.parquet:neg_type: 20 rows, first row 2 ",
        ),
        (
            lambda c: c["eval/pairs_val.parquet"]["t"].__setitem__(1, 7),
            r"stray negative in eval/pairs_val.parquet: 1 rows, first row 2 .*needed every neg",
        ),
        (
            lambda c: c["edges/job__has__skill.parquet"].pop("dst"),
            r"missing column in edges/job__has__skill.parquet:dst",
        ),
        (
            lambda c: c["nodes/member.parquet"].update(email=["x"] * tidy.NUM_MEMBERS),
            r"personal data in nodes/member.parquet:email",
        ),
    ],
)
def test_what_cannot_work_says_why(bend, message, tmp_path):
    content = tidy.tables()
    bend(content)
    with pytest.raises(InputError, match=message):
        _imported(tmp_path, content)
    assert not (tmp_path / "run/tables").exists()
    assert not list((tmp_path / "run").glob(".*")) if (tmp_path / "run").exists() else True


def test_unreadable_files_are_named_together(tmp_path):
    data = tidy.write(tmp_path / "data", tidy.tables(), time_unit=None)
    for name in ("nodes/job.parquet", "interactions.parquet"):
        path = data / name
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"2 kinds .*nodes/job.parquet .*interactions.parquet"):
        run(ImportConfig(source=data), tmp_path / "run")


def test_an_unknown_time_unit_is_refused(tmp_path):
    with pytest.raises(InputError, match="time_unit is 'fortnight', needed unix_s, ordinal or nul"):
        _imported(tmp_path, tidy.tables(), time_unit="fortnight")


def test_personal_data_may_be_declared_on_the_command_line(tmp_path):
    content = tidy.tables()
    content["nodes/member.parquet"]["birth_decade"] = [1980, 1990] * (tidy.NUM_MEMBERS // 2)
    data = tidy.write(tmp_path / "data", content, time_unit="ordinal")
    config = ImportConfig(source=data, personal_data=("nodes/member.parquet:birth_decade",))
    run(config, tmp_path / "run")
    assert "birth_decade" in read.read_meta(tmp_path / "run/tables").node_types["member"].dense


def test_importing_twice_gives_the_same_bytes(tmp_path):
    data = tidy.write(tmp_path / "data", tidy.tables(evaluation=False), time_unit="ordinal")
    manifests = []
    for name in ("a", "b"):
        run(ImportConfig(source=data), tmp_path / name)
        manifests.append(json.loads((tmp_path / name / "tables/manifest.json").read_text()))
    assert manifests[0] == manifests[1]
    assert pq.read_table(tmp_path / "a/tables/pairs/apply/train.parquet").num_rows > 0
