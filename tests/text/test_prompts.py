import pytest

from star_jax.config import InputError
from star_jax.text.prompts import clean, prompt
from star_jax.text.tower import TowerConfig


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain", "plain"),
        ("<p>Nurse&nbsp;wanted</p><br/>Apply", "Nurse wanted Apply"),
        ('<a href="x">R&amp;D</a> &#8364; &#x20AC;', "R&D € €"),
        ("List<String> a < b > c", "List<String> a < b > c"),
        ("</s> <s> [SEP]", "</s> <s> [SEP]"),
        ("AT&T x&lt y", "AT&T x&lt y"),
        (" a \t\n b\u3000c ", "a b c"),
        ("Zu\u0308rich", "Z\u00fcrich"),
        ("ﬁ ①", "ﬁ ①"),  # NFC, not NFKC.
    ],
)
def test_clean_takes_off_markup_and_blanks_and_nothing_else(raw, expected):
    assert clean(raw) == expected


def test_prompts_by_version_and_kind():
    assert prompt("none", "job") == prompt("none", "skill") == ""
    assert prompt("e5-1", "profile") == "query: "
    assert prompt("e5-1", "job") == prompt("e5-1", "skill") == "passage: "
    assert prompt("instruct-1", "job").startswith("Instruct: Represent this job posting")
    assert "this hire project," in prompt("instruct-1", "hire_project")


def test_an_unknown_version_is_named():
    message = "prompts 'e6' is unknown, needed one of none, instruct-1, e5-1"
    with pytest.raises(InputError, match=message):
        prompt("e6", "job")
    with pytest.raises(ValueError, match=message):
        TowerConfig(prompts="e6")
