"""Rows of versions, and what is trained on them."""

import numpy as np
import pytest

from star_jax.pipeline.consumers.fits import find_fit
from star_jax.pipeline.consumers.versions import Version
from star_jax.pipeline.tables.read import read_pairs
from tests.jobs import two_versions
from tests.jobs.two_versions import check, row


def test_vectors_of_texts_are_those_of_the_pairs_own_texts(tmp_path):
    vectors = two_versions.make_tables(tmp_path, num_members=120, num_jobs=60)
    num_members = len(vectors["member"])
    rows = two_versions.write_texts(tmp_path, vectors)
    two_versions.write_version(tmp_path / "nodes", vectors)
    limits = {"tasks": ("apply",), "attributes": ("member.ambition",)}
    of_nodes, _ = check(tmp_path, "nodes", old="nodes", **limits)
    of_texts, _ = check(tmp_path, "texts", old="texts", **limits)
    for found in of_texts["consumers"]:
        same = row(
            of_nodes["consumers"], **{k: found[k] for k in ("question", "metric", "consumer")}
        )
        assert (found["old"] == same["old"]) == (found["question"] == "apply")
    assert of_texts["indexes"] == of_nodes["indexes"]
    assert row(of_texts["spaces"], table="member")["num_rows"] == len(rows)
    version = Version(tmp_path / "texts", tmp_path / "tables")
    ends = version.node_ends("member", tmp_path / "tables", num_members)
    latest = np.where(np.arange(num_members) % 3 == 0, num_members + np.arange(num_members) // 3, 0)
    assert ends.keys[0].tolist() == np.maximum(latest, np.arange(num_members)).tolist()
    pairs = read_pairs(tmp_path / "tables", "apply", "test")
    none = np.full_like(pairs.sender_text, -1)
    asked = pairs._replace(sender_text=none, sender_resume=np.where(pairs.sender > 9, none, 121))
    ends = version.pair_ends(("member", "job"), asked)
    np.testing.assert_array_equal(version.has(ends), pairs.sender <= 9)
    np.testing.assert_array_equal(ends.keys[0][pairs.sender <= 9], 121)
    with pytest.raises(
        ValueError, match=r"nodes holds graph_embeddings and new .*texts text_emb.*, needed one"
    ):
        check(tmp_path, "texts", old="nodes")


def test_a_type_of_two_roles_has_a_table_of_each(tmp_path):
    vectors = two_versions.make_tables(tmp_path, num_members=90, num_jobs=50)
    tables = vectors | {"member.receiver": vectors["member"]}
    version = Version(two_versions.write_version(tmp_path / "new", tables), tmp_path / "tables")
    assert version.table_of("member", "sender") == "member"
    assert version.table_of("member", "receiver") == "member.receiver"
    assert version.table_of("job", "receiver") == "job"
    assert version.table_of("skill", "sender") is None


def test_texts_of_other_tables_are_refused(tmp_path):
    vectors = two_versions.make_tables(tmp_path, num_members=120, num_jobs=60)
    two_versions.make_tables(tmp_path / "other", num_members=90, num_jobs=50)
    two_versions.write_texts(tmp_path, vectors)
    with pytest.raises(
        ValueError, match=r"has the vectors of other texts than .* holds .60 and 50"
    ):
        Version(tmp_path / "texts", tmp_path / "other" / "tables")


def test_scikit_learn_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names 'trees'.*pip install 'star_jax\[consumers\]'"):
        find_fit("trees")


@pytest.mark.extra("consumers")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", ["logistic", "trees", "mlp"])
def test_a_seed_makes_the_same_consumer(model):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((80, 6)).astype(np.float32)
    labels = features[:, 0] + rng.standard_normal(80) > 0
    one, again = (find_fit(model)(features, labels, 3)(features) for _ in range(2))
    np.testing.assert_array_equal(one, again)
