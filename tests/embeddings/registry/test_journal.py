import pytest

from star_jax.config import InputError
from star_jax.embeddings.registry.files import open_files
from star_jax.embeddings.registry.journal import ConflictError, append, describe, read_events
from star_jax.embeddings.registry.state import State, fold


@pytest.fixture
def journal(tmp_path):
    """A place with three events."""
    files = open_files(str(tmp_path))
    events = []
    for number in range(3):
        change = {"do": "unalias", "name": f"é{number}", "alias": "a", "reason": None}
        events.append(append(files, events, change))
    return files, events, tmp_path / "journal"


def test_events_come_back_in_order(journal):
    files, events, _ = journal
    assert read_events(files, []) == events
    assert read_events(files, events[:2]) == events
    assert [event.number for event in events] == [1, 2, 3]


def test_of_two_changes_on_the_same_events_one_wins(journal):
    files, events, _ = journal
    won = append(files, events, {"do": "promote", "version": "market@1"})
    with pytest.raises(ConflictError) as error:
        append(files, events, {"do": "promote", "version": "market@2"})
    assert f"was changed meanwhile: {describe(won)}; nothing of this was done" in str(error.value)
    assert "promote market@1" in str(error.value)
    assert read_events(files, events) == [*events, won]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_flipped_byte_is_found(journal, number):
    files, _, folder = journal
    path = folder / f"{number:08d}.json"
    content = path.read_bytes()
    for place in [*range(0, len(content), 4), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=rf"{path.name} is not what was written there"):
            read_events(files, [])
    path.write_bytes(content.replace(b"\n", b" ", 1))  # The same JSON.
    with pytest.raises(InputError, match=rf"{path.name} is not what was written there"):
        read_events(files, [])
    path.write_bytes(content)
    assert len(read_events(files, [])) == 3


def test_a_whole_event_in_the_place_of_another_is_found(journal, tmp_path):
    files, events, folder = journal
    other = open_files(str(tmp_path / "other"))
    append(other, events[:1], {"do": "promote", "version": "market@1"})
    name = "00000002.json"
    (folder / name).write_bytes((tmp_path / "other" / "journal" / name).read_bytes())
    with pytest.raises(InputError, match=r"00000003\.json is not what was written there"):
        read_events(files, [])


def test_events_that_are_exchanged_or_missing_are_found(journal):
    files, _, folder = journal
    first, second = (folder / f"{number:08d}.json" for number in (1, 2))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(InputError, match=r"00000001\.json is not what was written there"):
        read_events(files, [])
    first.write_bytes(contents[0])
    second.unlink()
    with pytest.raises(InputError, match=r"00000002\.json is missing, there is .*00000003\.json"):
        read_events(files, [])


def test_an_event_that_no_rule_allows_is_named(journal):
    _, events, _ = journal
    with pytest.raises(InputError, match=r"event 1 at .*: unalias é0 a: é0 has no alias a, which"):
        fold(State(), events)
