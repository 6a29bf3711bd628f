"""`star release`: maps and contracts for old consumers, then the promotion."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.transforms.files import read_transform
from tests.embeddings.registry import artefact
from tests.jobs import two_versions

ROOT = Path(__file__).parents[2]
CONFIG = """
from star_jax.jobs.check_consumers import ContractConfig
from star_jax.jobs.release import ReleaseConfig

def get_config():
    return ReleaseConfig(contract=ContractConfig(consumers=("dot", "{own}")))
"""


@pytest.fixture
def released(star, tmp_path):
    """Runs `star release` for a version; the first one is active and has a consumer."""
    vectors = two_versions.make_tables(tmp_path)
    opened = Registry(tmp_path / "r")
    opened.add(two_versions.write_version(tmp_path / "old", vectors), "toy")
    opened.promote("toy@1")
    opened.add_consumer("ads", "toy@1", "ads-team")
    for number, size in ((2, two_versions.SIZE + 2), (3, two_versions.SIZE)):
        turned, _ = two_versions.turned(vectors, size, seed=number)
        opened.add(two_versions.write_version(tmp_path / f"v{number}", turned), "toy")
    (tmp_path / "config.py").write_text(CONFIG.format(own=two_versions.OWN), encoding="utf-8")

    def run(new, *args):
        paths = ("--workdir", tmp_path, "--registry", tmp_path / "r")
        return star("release", tmp_path / "config.py", "--new", new, *paths, *args)

    return run, opened


def finished_run(folder, vectors):
    """A model, and the vectors it made."""
    model = artefact.write(folder / "graph_model", "graph_model", folder.name)
    made = two_versions.write_version(folder / "graph_embeddings", vectors)
    artefacts.seal(
        made, "graph_embeddings", {"model": artefacts.digest(model), "graph": folder.name}
    )


@pytest.mark.extra("consumers")
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_readme_leads_from_two_runs_to_a_version_in_production(star, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    vectors = two_versions.make_tables(tmp_path / "runs" / "two")
    finished_run(tmp_path / "runs" / "one", vectors)
    finished_run(tmp_path / "runs" / "two", two_versions.turned(vectors, two_versions.SIZE)[0])
    chapter = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, chapter = chapter.partition("## Versions, and who depends on them")
    commands, code = re.findall(r"```(?:console|python)\n(.*?)```", chapter, re.DOTALL)[:2]
    for command in commands.replace("$ star ", "").splitlines():
        ended = star(*shlex.split(command))
        assert ended.code == 0, ended.err
    opened = Registry("R")
    versions = [states(opened)[f"market-graph@{number}"] for number in (1, 2)]
    assert versions == ["deprecated", "active"]
    assert [each.consumer for each in opened.state().consumers.values()] == ["ads"]
    assert not opened.unserved()
    names = {}
    exec(code.replace("m17", "member-17"), names)
    np.testing.assert_allclose(names["vectors"], vectors["member"][[17]], atol=1e-2)


def states(opened):
    return {ref: each.state for ref, each in opened.state().versions.items()}


def test_a_version_with_old_consumers_becomes_active_in_one_command(released, tmp_path):
    run, opened = released
    ended = run("toy@2")
    assert ended.code == 0, ended.err
    assert "toy@1: frozen consumers" in ended.out
    assert opened.version("toy").ref == "toy@2"
    (chain,) = opened.chain("toy@2", "toy@1")
    assert read_transform(chain).old == opened.version("toy@1").digest
    assert not opened.unserved()
    opened.add_consumer("feed", "toy@2", "feed-team")
    again = run("toy@2")  # Nothing is missing.
    assert "all limits hold" in again.out
    assert len(opened.state().of_name("toy-map")) == 1
    assert run("toy@3").code == 0  # Two old versions have consumers now.
    maps = {(m.facts["new"], m.facts["old"]) for m in opened.state().of_name("toy-map")}
    digests = [opened.version(f"toy@{number}").digest for number in (1, 2, 3)]
    assert maps == {(digests[1], digests[0]), (digests[2], digests[0]), (digests[2], digests[1])}
    assert states(opened)["toy@3"] == "active"
    folder = tmp_path / "release" / "toy@2"
    assert artefacts.read_any(folder / "contract").meta["passed"]


def test_nothing_is_promoted_where_a_contract_is_broken(released):
    run, opened = released
    ended = run("toy@2", "--transform.mode", "lowrank", "--transform.rank", "1")
    assert ended.code == 1
    assert "broken: toy@1: " in ended.out
    assert opened.version("toy").ref == "toy@1"
    assert opened.version("toy-contract@1").facts["passed"] is False
    assert run("toy@2").code == 0  # Another map is fitted, since that one failed.
    assert opened.version("toy").ref == "toy@2"
    assert len(opened.state().of_name("toy-map")) == 2


def test_a_consumer_of_a_retired_version_is_served_when_that_is_added_again(released, tmp_path):
    run, opened = released
    assert run("toy@2").code == 0
    opened.retire("toy@1")
    assert "once toy@1 is retired, add its artefact again" in run("toy@3").errors[0]
    assert opened.add(tmp_path / "old", "toy").ref == "toy@4"
    assert run("toy@3").code == 0
    assert not opened.unserved()


def test_a_version_without_old_consumers_is_promoted_alone(released):
    run, opened = released
    opened.remove_consumer("ads", "toy")
    assert run("toy@3").code == 0
    assert set(states(opened)) == {"toy@1", "toy@2", "toy@3"}
    assert opened.version("toy").ref == "toy@3"
