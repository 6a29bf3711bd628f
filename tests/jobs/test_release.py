"""`star release`: maps and contracts for old consumers, then the promotion."""

import pytest

from star_jax import artefacts
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.transforms.files import read_transform
from tests.jobs import two_versions

CONFIG = """
from star_jax.embeddings.transforms.fit import TransformConfig
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
