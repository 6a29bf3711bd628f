"""Signal manifests: what they may say, what a branch changes, what a merge makes of two."""

import dataclasses

import pytest

from star_jax.config import InputError, from_json, to_json
from star_jax.pipeline.signals import (
    Signal,
    Signals,
    choose,
    diff,
    everything,
    merge,
    read_signals,
    without_each,
    write_signals,
)
from star_jax.pipeline.tables.read import EdgeMeta, NodeMeta, TablesMeta, TaskMeta


def signal(*parts, owner="ann", description="about"):
    return Signal(owner=owner, description=description, parts=parts)


def signals(**by_name):
    return Signals(signals=by_name)


SKILL = signal("node:skill", "edge:job__needs__skill")
WORDS = signal("text:job", owner="bob")
SITE = signal("categorical:job.site")
BASE = signals(skill=SKILL, words=WORDS)


def tables():
    """Members apply to jobs of towns; jobs need skills, skills are taught at schools."""

    def node(*columns, dense=(), has_texts=False):
        categorical = {column: 3 + i for i, column in enumerate(columns)}
        return NodeMeta(
            count=4, categorical=categorical, dense=list(dense), has_texts=has_texts, has_time=False
        )

    def edge(key):
        sender, relation, receiver = key.split("__")
        return EdgeMeta(
            sender=sender,
            relation=relation,
            receiver=receiver,
            kind="attribute",
            count=2,
            has_time=False,
            has_split=False,
        )

    keys = ("member__apply__job", "job__needs__skill", "school__teaches__skill", "job__in__town")
    return TablesMeta(
        dataset="small",
        time_unit="ordinal",
        node_types={
            "member": node(dense=("age", "pay"), has_texts=True),
            "job": node("site", "kind", dense=("pay",), has_texts=True),
            "skill": node(),
            "school": node("rank"),
            "town": node(),
        },
        edge_types=[edge(key) for key in keys],
        tasks={
            "apply": TaskMeta(
                sender="member",
                receiver="job",
                edge_types=["member__apply__job"],
                negatives=[],
                counts={},
                class_weights=(1.0, 1.0),
            )
        },
        cohorts=[],
        reference=None,
        import_report={},
    )


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    write_signals(BASE, tmp_path / "deep" / "base.json")
    assert read_signals(tmp_path / "deep" / "base.json") == BASE
    assert from_json(Signals, to_json(everything(tables()))) == everything(tables())
    (tmp_path / "bad.json").write_text('{"signals": {"a": {"owner": "x", "part": []}}}')
    with pytest.raises(InputError, match=r"bad\.json: signals\.a\.description"):
        read_signals(tmp_path / "bad.json")
    with pytest.raises(
        InputError, match=r"no\.json does not exist, needed signals; `star branch in"
    ):
        read_signals(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: signal("skill"), "part 'skill' is none of node:, edge:, text:, categorical:"),
        (lambda: signal("edges:a__b__c"), "part 'edges:a__b__c' is none of"),
        (lambda: Signals(signals={"a/b": SKILL}), "signal 'a/b', needed a name of letters"),
        (
            lambda: signals(a=SKILL, b=signal("node:skill")),
            "part node:skill is claimed by the signals a and b",
        ),
        (lambda: signals(a=signal("node:x", "node:x")), "part node:x is twice in signal a"),
    ],
)
def test_what_no_manifest_may_say(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_all_signals_are_all_that_was_imported():
    schema, texts = choose(everything(tables()), tables())
    assert list(schema.nodes) == ["member", "job", "skill", "school", "town"]
    assert schema.nodes["job"].categorical == {"site": 3, "kind": 4}
    assert schema.nodes["member"].dense == ("age", "pay")
    assert [edge.key for edge in schema.edges] == [edge.name for edge in tables().edge_types]
    assert texts == ("member", "job")


def test_nodes_stay_as_long_as_something_needs_them():
    chosen = choose(
        signals(
            teaching=signal("edge:school__teaches__skill"),
            site=SITE,
            pay=signal("dense:member.pay"),
            words=WORDS,
        ),
        tables(),
    )
    assert list(chosen.schema.nodes) == ["member", "job", "skill", "school"]  # No town.
    assert [edge.key for edge in chosen.schema.edges] == ["school__teaches__skill"]
    assert chosen.schema.nodes["school"].categorical == {}
    assert chosen.schema.nodes["job"].categorical == {"site": 3}
    assert chosen.schema.nodes["job"].dense == ()
    assert chosen.schema.nodes["member"].dense == ("pay",)
    assert chosen.texts == ("job",)
    nothing = choose(Signals(signals={}), tables())
    assert list(nothing.schema.nodes) == ["member", "job"]  # Ends of the task.
    rank = choose(signals(rank=signal("categorical:school.rank")), tables())
    assert list(rank.schema.nodes) == ["member", "job", "school"]


def test_parts_that_were_not_imported_are_named():
    with pytest.raises(InputError, match=r"signal x has the part edge:a__b__c, which was not im"):
        choose(signals(x=signal("edge:a__b__c")), tables())
    with pytest.raises(InputError, match="needed one of text:job, text:member"):
        choose(signals(x=signal("text:town")), tables())


def test_a_difference_names_signals_and_fields():
    other = signals(
        skill=signal("node:skill", "node:town", owner="eve"),
        site=SITE,
    )
    assert diff(BASE, other) == [
        "- words (bob): about [text:job]",
        '~ skill: owner: "ann" -> "eve"',
        "~ skill: -edge:job__needs__skill",
        "~ skill: +node:town",
        "+ site (ann): about [categorical:job.site]",
    ]
    assert diff(BASE, BASE) == []
    turned = signals(words=WORDS, skill=dataclasses.replace(SKILL, parts=SKILL.parts[::-1]))
    assert diff(BASE, turned) == ["~ skill: its parts are in another order"]


def test_two_branches_merge_into_their_union():
    a = signals(skill=dataclasses.replace(SKILL, owner="eve"), words=WORDS, site=SITE)
    b = signals(skill=SKILL, site=SITE, town=signal("edge:job__in__town"))
    merged, conflicts = merge(BASE, a, b)
    assert conflicts == []
    assert merged == {  # Changed by a, removed by b, added by both alike, added by b.
        "skill": a.signals["skill"],
        "site": SITE,
        "town": b.signals["town"],
    }
    assert merge(BASE, b, a).signals == merged
    assert merge(BASE, BASE, BASE).signals == BASE.signals


def test_every_conflict_is_named():
    a = signals(skill=dataclasses.replace(SKILL, owner="eve"), town=signal("node:town"), site=SITE)
    b = signals(
        skill=signal("node:skill"),
        words=dataclasses.replace(WORDS, description="better"),
        town=signal("node:town", "edge:job__in__town"),
        place=signal("categorical:job.site"),
    )
    assert sorted(merge(BASE, a, b).conflicts) == [
        "part categorical:job.site is claimed by the signals place and site",
        'signal skill was changed by both, differently (owner: "eve" -> "ann"; '
        "-edge:job__needs__skill)",
        "signal town was added by both, differently (+edge:job__in__town)",
        "signal words was removed by A and changed by B",
    ]
    assert "signal words was removed by B and changed by A" in merge(BASE, b, a).conflicts


def test_each_signal_is_left_out_once():
    left = without_each(signals(skill=SKILL, words=WORDS, site=SITE))
    assert {name: list(each.signals) for name, each in left.items()} == {
        "skill": ["words", "site"],
        "words": ["skill", "site"],
        "site": ["skill", "words"],
    }
