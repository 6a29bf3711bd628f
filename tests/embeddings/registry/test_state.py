"""The rules, against a slow reading of the same events and against an exhaustive search."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.config import InputError
from star_jax.embeddings.registry.chains import find_chain
from star_jax.embeddings.registry.journal import Event
from star_jax.embeddings.registry.state import State, fold

NAMES = ("market", "skills")
CONSUMERS = ("ads", "feed")


def added(ref, digest=None, kind="graph_embeddings", **facts):
    """The change that adds a version."""
    return {
        "do": "add",
        "version": ref,
        "kind": kind,
        "digest": digest or f"digest of {ref}",
        "manifest_sha256": "",
        "parents": {},
        "facts": facts,
        "record": ["", ""],
        "reports": {},
    }


def refs():
    return st.builds("{}@{}".format, st.sampled_from(NAMES), st.integers(1, 3))


CHANGES = st.one_of(
    st.builds(added, refs()),
    st.builds(
        lambda do, ref, alias, consumer, flag: {
            "do": do,
            "version": ref,
            "name": ref.split("@")[0],
            "alias": alias,
            "consumer": consumer,
            "owner": "ann" if flag else "bob",
            "broken": [],
            "reason": None,
            "delete": flag,
        },
        st.sampled_from(
            [
                *["promote"] * 2,
                *("deprecate", "retire", "alias", "unalias", "add-consumer", "remove-consumer"),
            ]
        ),
        refs(),
        st.sampled_from(["canary", "active"]),
        st.sampled_from(CONSUMERS),
        st.booleans(),
    ),
)


def event(number, change):
    return Event(number, "", 0, "ann@here", change, "")


def states_of(changes):
    """State of every version by the last changes that named it or promoted another one."""
    found, active = {}, {}
    for change in changes:
        ref = change.get("version")
        match change["do"]:
            case "add":
                found[ref] = "candidate"
            case "promote":
                name = ref.split("@")[0]
                if name in active:
                    found[active[name]] = "deprecated"
                found[ref], active[name] = "active", ref
            case "deprecate":
                found[ref] = "deprecated"
            case "retire":
                found[ref] = "retired"
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=25))
def test_whatever_is_allowed_folds_to_a_consistent_state(changes):
    state, done = State(), []
    for change in changes:
        before = (dict(state.versions), dict(state.consumers))
        try:
            new = state.after(change)
        except (InputError, KeyError):  # KeyError: of a version that is not there.
            assert (state.versions, state.consumers) == before
            continue
        state = new
        done.append(change)
    assert {ref: v.state for ref, v in state.versions.items()} == states_of(done)
    for name in NAMES:
        of_name = state.of_name(name)
        assert [v.number for v in of_name] == list(range(1, len(of_name) + 1))
        assert [v for v in of_name if v.state == "active"] == [
            v for v in [state.active(name)] if v is not None
        ]
        for ref in state.aliases.get(name, {}).values():
            assert state.versions[ref].state != "retired"
    for (consumer, name), each in state.consumers.items():
        assert (consumer, name) == (each.consumer, state.versions[each.version].name)
    half = len(done) // 2
    events = [event(number, change) for number, change in enumerate(done)]
    folded = fold(fold(State(), events[:half]), events[half:])
    assert (folded.versions, folded.aliases, folded.consumers) == (
        state.versions,
        state.aliases,
        state.consumers,
    )


def made(*changes):
    state = State()
    for change in changes:
        state = state.after(change)
    return state


def digest_of(number):
    return f"digest of market@{number}"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_the_chain_is_the_shortest_of_all_ways(edges, new, old, max_chain):
    state = made(
        *(added(f"market@{n}") for n in range(1, 6)),
        *(
            added(f"map@{i}", kind="transform", new=digest_of(a), old=digest_of(b))
            for i, (a, b) in enumerate(edges, start=1)
        ),
    )
    ways = [
        [f"map@{i + 1}" for i in way]
        for length in range(max_chain + 1)
        for way in itertools.product(range(len(edges)), repeat=length)
        if [new, *(edges[i][1] for i in way)] == [*(edges[i][0] for i in way), old]
    ]
    ends = state.find(f"market@{new}"), state.find(f"market@{old}")
    if not ways:
        with pytest.raises(InputError, match=f"no chain of at most {max_chain} transforms leads"):
            find_chain(state, *ends, max_chain)
        return
    found = [version.ref for version in find_chain(state, *ends, max_chain)]
    assert found in ways
    assert len(found) == min(len(way) for way in ways)


def test_of_two_maps_the_later_one_leads_and_a_deprecated_one_nowhere():
    state = made(
        added("market@1"),
        added("market@2"),
        added("map@1", kind="transform", new=digest_of(2), old=digest_of(1)),
        added("map@2", kind="transform", new=digest_of(2), old=digest_of(1)),
    )
    ends = state.find("market@2"), state.find("market@1")
    assert [v.ref for v in find_chain(state, *ends, 5)] == ["map@2"]
    without = state.after({"do": "deprecate", "version": "map@2"})
    assert [v.ref for v in find_chain(without, *ends, 5)] == ["map@1"]
    for number, passed in enumerate([True, False, True], start=1):
        agreed = {"new": digest_of(2), "old": digest_of(1), "passed": passed, "breaks": []}
        agreed["transform"] = "digest of map@1"
        state = state.after(added(f"agreed@{number}", kind="contract", **agreed))
        led = [v.ref for v in find_chain(state, *ends, 5)]
        assert led == (["map@1"] if passed else ["map@2"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([added("market@2")], "market@2 is not the next version of market"),
        ([added("ma ket@1")], "name 'ma ket', needed letters"),
        ([added("market@1"), added("market@2", kind="graph")], "market is of kind graph_emb"),
        ([added("market@1"), *[{"do": "deprecate", "version": "market@1"}] * 2],
         "market@1 is deprecated already"),
        ([added("market@1"), {"do": "alias", "version": "market@1", "alias": "active"}],
         "alias active follows from `star registry promote`"),
        ([added("market@1"), {"do": "alias", "version": "market@1", "alias": "7"}], "alias '7', "),
        ([{"do": "unalias", "name": "market", "alias": "x"}], "market has no alias x"),
        ([{"do": "remove-consumer", "name": "market", "consumer": "x"}],
         "consumer x of market is not registered; there are none"),
    ],
)  # fmt: skip
def test_what_may_not_be_says_why(changes, message):
    with pytest.raises(InputError, match=message):
        made(*changes)
