"""What the Markdown files name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "tests/complaints.md", "launch/GPU.md", "launch/TPU.md")
    ),
    *ROOT.glob("bench/results/*.md"),
]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_FILE = re.compile(
    r"(?<![\w./])(?:star_jax|configs|launch|data|tests|bench)/[\w/]+\.(?:py|sh|md)\b"
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    for file, name in _TEST.findall(text):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
    for file in _FILE.findall(text):
        assert (ROOT / file).is_file(), file


def test_benchmarks_are_run_from_the_root():
    """They import their siblings and the configs, which are not installed."""
    for file in [*DOCUMENTS, *ROOT.glob("bench/*.py")]:
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"(?<!PYTHONPATH=\. )python bench/\S*", text), file


def test_every_complaint_has_a_test_or_says_that_it_has_none():
    rows = (ROOT / "tests/complaints.md").read_text(encoding="utf-8").splitlines()
    table = [row for row in rows if row.startswith("| ") and not row.startswith("| complaint")]
    assert len(table) == 12 + 10  # Of text trainers and of graph trainers.
    for row in table:
        assert _TEST.search(row) or "not measured yet" in row, row
