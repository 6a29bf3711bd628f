"""Contracts between versions of embeddings and what was trained on them."""

import json

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.embeddings.registry.registry import Registry
from star_jax.evaluation.auc import roc_auc
from star_jax.jobs import check_consumers
from star_jax.jobs.check_consumers import ContractConfig
from star_jax.pipeline.consumers.limits import Limits
from star_jax.pipeline.tables.read import read_nodes, read_pairs, read_ranking
from tests.jobs import two_versions
from tests.jobs.two_versions import OWN, check, row

ATTRIBUTES = {"member.region=west", "member.ambition"}
CONFIG = """
from star_jax.jobs.check_consumers import ContractConfig

def get_config():
    return ContractConfig(consumers=("dot", "{own}"))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working directory, its old vectors, and the versions `old`, `same` and `wide`."""
    folder = tmp_path_factory.mktemp("contract")
    vectors = two_versions.make_tables(folder)
    old = two_versions.write_version(folder / "old", vectors)
    for name, size in (("same", two_versions.SIZE), ("wide", two_versions.SIZE + 2)):
        turned, back = two_versions.turned(vectors, size)
        new = two_versions.write_version(folder / name, turned)
        two_versions.write_map(folder / f"map_{name}", old, new, back)
    return folder, vectors


@pytest.mark.parametrize("new", ["same", "wide"])
def test_a_map_that_loses_nothing_passes(world, new):
    folder, _ = world
    content, meta = check(folder, new, f"map_{new}")
    assert meta["passed"]
    assert meta["breaks"] == content["breaks"] == []
    names = ("old", new, f"map_{new}")
    assert [meta[key] for key in ("old", "new", "transform")] == [
        artefacts.digest(folder / name) for name in names
    ]
    for found in content["consumers"]:
        assert found["served"] == pytest.approx(found["old"], abs=2e-3)
        assert (found["new"] is None) == (new == "wide")
    assert {found["question"] for found in content["consumers"]} == {"apply", *ATTRIBUTES}
    for found in content["spaces"]:
        assert found["alignment_error"] < 1e-4
        assert found["overlap@10_served"] > 0.99 > found["overlap@10_new"]


def test_scores_are_those_of_the_definition(world):
    folder, vectors = world
    content, _ = check(folder, "same", "map_same")
    pairs = read_pairs(folder / "tables", "apply", "test")
    turned, _ = two_versions.turned(vectors, two_versions.SIZE)
    for metric in ("uniform", "near"):
        rows = (pairs.label == 1) | (pairs.negative == metric)
        sender, receiver, label = pairs.sender[rows], pairs.receiver[rows], pairs.label[rows] == 1
        found = row(content["consumers"], question="apply", consumer="dot", metric=f"auc_{metric}")
        for column, version in (("old", vectors), ("new", turned), ("retrained", turned)):
            products = (version["member"][sender] * version["job"][receiver]).sum(axis=1)
            assert found[column] == pytest.approx(roc_auc(label, products), abs=2e-4), column
        assert found["num_examples"] == rows.sum()
        assert found["drop"] == pytest.approx(found["old"] - found["served"], abs=2e-4)
    own = row(content["consumers"], question="apply", consumer=OWN, metric="auc_uniform")
    train = read_pairs(folder / "tables", "apply", "train")
    rows = (pairs.label == 1) | (pairs.negative == "uniform")
    frozen = two_versions.fit_products(features(vectors, train), train.label == 1, 0)
    label = pairs.label[rows] == 1
    for column, version in (("old", vectors), ("new", turned)):
        scores = frozen(features(version, pairs)[rows])
        assert own[column] == pytest.approx(roc_auc(label, scores), abs=2e-4), column
    anew = two_versions.fit_products(features(turned, train), train.label == 1, 0)
    scores = anew(features(turned, pairs)[rows])
    assert own["retrained"] == pytest.approx(roc_auc(label, scores), abs=2e-4)


def features(vectors, pairs):
    member, job = vectors["member"][pairs.sender], vectors["job"][pairs.receiver]
    return np.hstack([member, job, member * job]).astype(np.float32)


def test_vectors_that_say_nothing_break_every_kind_of_limit_by_name(world):
    folder, vectors = world
    rng = np.random.default_rng(6)
    drawn = {name: rng.standard_normal(rows.shape) for name, rows in vectors.items()}
    two_versions.write_version(folder / "drawn", drawn)
    content, meta = check(folder, "drawn")
    assert not meta["passed"]
    assert meta["transform"] is None
    found = row(content["consumers"], question="member.region=west", consumer=OWN)
    assert found["served"] == found["new"] < found["old"] - 0.2
    line = (
        f"auc_drop 0.02: {OWN} of member.region=west loses {found['drop']} of auc "
        f"({found['old']} -> {found['served']}) (p {found['p_value']:.2g})"
    )
    assert line in meta["breaks"]
    kinds = {text.split()[0] for text in meta["breaks"]}
    assert kinds == {
        "auc_drop",
        "cohort_drop",
        "cold_drop",
        "recall_drop",
        "alignment_error",
        "neighbour_overlap",
    }
    nothing = dict.fromkeys(("auc_drop", "cohort_drop", "cold_drop", "recall_drop"))
    nothing |= dict.fromkeys(("alignment_error", "neighbour_overlap", "missing_rows"))
    assert check(folder, "drawn", limits=Limits(**nothing))[1]["passed"]


def test_one_cohort_that_is_served_worse_is_named_alone(world):
    folder, vectors = world
    gender = read_nodes(folder / "tables", "member")["cohort_gender"].to_pylist()
    spoilt = np.asarray([value == "FEMALE" for value in gender])
    noise = np.random.default_rng(2).standard_normal(vectors["member"].shape)
    members = np.where(spoilt[:, None], 3 * noise, vectors["member"])
    two_versions.write_version(folder / "spoilt", vectors | {"member": members})
    content, meta = check(folder, "spoilt", limits=Limits(auc_drop=None), consumers=("dot",))
    broken = [text for text in meta["breaks"] if text.startswith("cohort_drop")]
    assert any(" on gender FEMALE (p " in text for text in broken)
    assert all("FEMALE" in text or "urgency" in text for text in broken)
    male = row(content["slices"], slice="gender MALE", consumer="dot")
    female = row(content["slices"], slice="gender FEMALE", consumer="dot")
    assert male["drop"] == 0
    assert female["drop"] > 0.2
    pairs = read_pairs(folder / "tables", "apply", "test")
    rows = ((pairs.label == 1) | (pairs.negative == "uniform")) & spoilt[pairs.sender]
    products = (members[pairs.sender] * vectors["job"][pairs.receiver]).sum(axis=1)[rows]
    assert female["served"] == pytest.approx(roc_auc(pairs.label[rows] == 1, products), abs=2e-4)
    assert female["num_members"] == len(np.unique(pairs.sender[rows]))


def test_small_cohorts_are_counted_and_not_shown(world):
    folder, _ = world
    config = check_consumers.ScoreConfig(min_cohort_members=75)
    content, _ = check(folder, "same", "map_same", score=config, consumers=("dot",))
    shown = {found["slice"] for found in content["slices"]}
    assert "gender MALE" not in shown
    assert {"urgency Urgent", "cold_member"} <= shown
    every, _ = check(folder, "same", "map_same", consumers=("dot",))
    assert len(every["slices"]) - len(shown) == (
        content["num_suppressed"]["apply"] - every["num_suppressed"]["apply"]
    )


def test_a_mixed_index_ranks_as_brute_force_does(world):
    folder, vectors = world
    content, _ = check(folder, "same", "map_same")
    turned, _ = two_versions.turned(vectors, two_versions.SIZE)
    ranking = read_ranking(folder / "tables", "apply", "test")
    assert ranking is not None

    def recall(members, jobs):
        found = []
        for sender, relevant, excluded in zip(
            ranking.sender, ranking.relevant, ranking.excluded, strict=True
        ):
            scores = jobs[ranking.candidates] @ members[sender]
            left_out = np.isin(ranking.candidates, np.setdiff1d(excluded, relevant))
            best = ranking.candidates[np.argsort(-np.where(left_out, -np.inf, scores))[:10]]
            found.append(np.isin(relevant, best).mean())
        return np.mean(found)

    versions = {"old": vectors, "served": vectors, "new": turned}
    assert len(content["indexes"]) == 5
    for found in content["indexes"]:
        wanted = recall(versions[found["queries"]]["member"], versions[found["candidates"]]["job"])
        assert found["recall@10"] == pytest.approx(wanted, abs=2e-3), found
    unmapped, meta = check(folder, "same")
    mixed = row(unmapped["indexes"], queries="old", candidates="served")
    assert mixed["recall@10"] == pytest.approx(recall(vectors["member"], turned["job"]), abs=2e-3)
    assert any("with queries old, candidates served loses" in line for line in meta["breaks"])


def test_rows_are_matched_by_id_and_those_of_one_version_are_left_out(world):
    folder, vectors = world
    rng = np.random.default_rng(4)
    keep = {name: rng.permutation(len(rows))[: len(rows) - 30] for name, rows in vectors.items()}
    two_versions.write_version(folder / "fewer", vectors, keep=keep)
    content, meta = check(folder, "fewer", consumers=("dot",))
    pairs = read_pairs(folder / "tables", "apply", "test")
    here = np.isin(pairs.sender, keep["member"]) & np.isin(pairs.receiver, keep["job"])
    assert content["num_left_out"]["apply"] == (~here).sum() > 0
    rows = here & ((pairs.label == 1) | (pairs.negative == "uniform"))
    found = row(content["consumers"], consumer="dot", metric="auc_uniform")
    assert found["num_examples"] == rows.sum()
    assert found["old"] == found["served"]
    assert meta["breaks"] == [
        "missing_rows 0.05: table job lacks 0.25 of its rows",
        "missing_rows 0.05: table member lacks 0.125 of its rows",
    ]
    assert row(content["spaces"], table="job")["num_rows"] == len(keep["job"])
    two_versions.write_version(folder / "members", {"member": vectors["member"]})
    content, meta = check(folder, "members")
    assert {found["question"] for found in content["consumers"]} == ATTRIBUTES
    assert meta["breaks"] == ["missing_rows 0.05: table job lacks 1.0 of its rows"]
    assert row(content["spaces"], table="job")["overlap@10_served"] is None
    with pytest.raises(ValueError, match="consumers dot were asked nothing: no task and no attrib"):
        check(folder, "members", consumers=("dot",))


def test_attributes_are_asked_by_value_and_by_median(world):
    folder, _ = world
    names = ("member.region=west", "member.ambition")
    content, _ = check(folder, "same", "map_same", attributes=names, tasks=("apply",))
    region, ambition = (
        row(content["consumers"], question=name, consumer=OWN)
        for name in ("member.region=west", "member.ambition")
    )
    assert region["old"] > 0.95
    assert ambition["old"] > 0.95
    assert region["num_examples"] == ambition["num_examples"] == 108  # Half of 216 with a value.
    assert region["interval"] is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("applied",)}, "tasks names 'applied', needed one of apply"),
        (
            {"attributes": ("member.age",)},
            r"attributes names 'member\.age', needed one of member\.",
        ),
        ({"attributes": ("member.region=east",)}, "the value 'east' of .* has north, south, west"),
        ({"attributes": ("member.ambition=3",)}, "ambition is a number: leave out =3"),
        (
            {"attributes": ("member.constant",)},
            "member.constant=only has 120 positives and 0 negatives to train on in both versions",
        ),
        ({"consumers": ("tree",)}, "names 'tree', needed one of dot, logistic, trees, mlp or mod"),
        ({"consumers": ("no.such:fit",)}, "names 'no.such:fit': No module named 'no'"),
        (
            {"consumers": ("tests.jobs.two_versions:fit_nothing",)},
            r"gave an array of shape \(1200, 21\) for 1200 rows, needed one finite score for each",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(world, fields, message):
    folder, _ = world
    with pytest.raises(ValueError, match=message):
        check(folder, "same", "map_same", **fields)


def test_versions_that_do_not_go_together_are_refused(world):
    folder, _ = world
    wide = r"table job: what would be served of new .* is 9 wide, old .* 7; a --transform maps them"
    with pytest.raises(ValueError, match=wide):
        check(folder, "wide")
    with pytest.raises(
        ValueError, match=r"transform .*map_wide maps .*, needed a map of new .*same"
    ):
        check(folder, "same", "map_wide")
    with pytest.raises(
        ValueError, match="tables holds tables, needed text_embeddings or graph_emb"
    ):
        check(folder, "tables")
    with pytest.raises(
        ValueError, match=r"is no folder of an artefact; as a version, .* --registry"
    ):
        check(folder, "nothing@1")


def test_the_command_prints_the_tables_and_fails_a_broken_contract(world, star, tmp_path):
    folder, _ = world
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(own=OWN))
    versions = ("--old", folder / "old", "--new", folder / "same")
    where = ("--workdir", folder, "--output", tmp_path / "contract")
    passed = star("check-consumers", config, *versions, "--transform", folder / "map_same", *where)
    assert passed.code == 0
    assert passed.out.endswith("\nall limits hold\n")
    other = star("check-consumers", config, *versions, *where[:-1], tmp_path)
    assert other.errors == [
        f"star: error: --output {tmp_path} is there and holds no contract; give another folder"
    ]
    broken = star("check-consumers", config, *versions, *where)  # In the place of the first.
    assert broken.code == 1
    lines = broken.out.splitlines()
    assert "frozen consumers" in lines
    header = next(line for line in lines if line.startswith("question") and "retrained" in line)
    assert header.split()[:5] == ["question", "consumer", "metric", "old", "new"]
    meta = artefacts.read_manifest(tmp_path / "contract", "contract").meta
    assert [line for line in lines if line.startswith("broken: ")] == [
        f"broken: {line}" for line in meta["breaks"]
    ]
    assert star("check-consumers", config, *versions[:2], *where).errors == [
        "star: error: --new is missing; see `star check-consumers --help`"
    ]


def test_a_registry_promotes_what_its_contract_allows(world, tmp_path):
    folder, _ = world
    url = str(tmp_path / "registry")
    registry = Registry(url)
    for name, ref in (("old", "vectors"), ("same", "vectors"), ("map_same", "map")):
        registry.add(folder / name, ref)
    registry.promote("vectors@1")
    registry.add_consumer("ads", "vectors@1", "team")

    def contract(name, transform):
        check_consumers.run(
            ContractConfig(consumers=(OWN,)),
            folder,
            old="vectors@1",
            new="vectors@2",
            transform=transform,
            registry=url,
            output=str(tmp_path / name),
        )
        registry.add(tmp_path / name, "contract")

    contract("unmapped", None)
    with pytest.raises(ValueError, match="no contract says that vectors@2 serves it through map@1"):
        registry.promote("vectors@2")
    contract("mapped", "map@1")
    assert registry.promote("vectors@2").number == 2
    passed = {
        name: artefacts.read_manifest(tmp_path / name, "contract").meta["passed"]
        for name in ("unmapped", "mapped")
    }
    assert passed == {"unmapped": False, "mapped": True}


def test_a_registry_refuses_what_breaks_its_contract(world, tmp_path):
    folder, _ = world
    bad = two_versions.write_map(tmp_path / "bad", folder / "old", folder / "same", -np.eye(7))
    output = str(tmp_path / "contract")
    where = {"old": str(folder / "old"), "new": str(folder / "same"), "transform": str(bad)}
    check_consumers.run(ContractConfig(consumers=(OWN,)), folder, **where, output=output)
    registry = Registry(tmp_path / "registry")
    for path, ref in ((folder / "old", "vectors"), (folder / "same", "vectors"), (bad, "map")):
        registry.add(path, ref)
    registry.add(tmp_path / "contract", "contract")
    registry.promote("vectors@1")
    registry.add_consumer("ads", "vectors@1", "team")
    with pytest.raises(ValueError, match=r"vectors@2 through map@1 breaks its contract: auc_drop"):
        registry.promote("vectors@2")
    assert registry.promote("vectors@2", force_reason="a test").number == 2


@pytest.mark.extra("consumers")
@pytest.mark.usefixtures("one_thread")
def test_models_of_scikit_learn_lose_without_the_map_and_nothing_with_it(world):
    folder, _ = world
    models = ("logistic", "trees", "mlp")
    asked = {"consumers": models, "attributes": ("member.region=west",)}
    content, _ = check(folder, "same", "map_same", **asked)
    for model in models:
        found = row(content["consumers"], question="member.region=west", consumer=model)
        assert found["old"] > 0.9, model
        assert found["served"] == pytest.approx(found["old"], abs=0.02), model
        assert found["new"] < found["old"] - 0.2, model
        assert found["retrained"] > found["new"] + 0.2, model


def test_a_contract_is_the_same_bytes_again(world):
    folder, _ = world
    config = check_consumers.ScoreConfig(fit_rows=60)
    made = []
    for _ in range(2):
        check(folder, "same", "map_same", score=config, num_sampled=20, num_queries=30)
        made.append((folder / "contract" / "contract.json").read_bytes())
    assert made[0] == made[1]
    content = json.loads(made[0])
    assert {found["num_sampled"] for found in content["spaces"]} == {20}
    assert {found["num_queries"] for found in content["indexes"]} == {30}
    other, _ = check(folder, "same", "map_same", score=config, seed=1)
    drawn = [row(c["consumers"], consumer=OWN, metric="auc_near") for c in (content, other)]
    assert drawn[0]["old"] != drawn[1]["old"]  # Other rows were drawn to train on.
