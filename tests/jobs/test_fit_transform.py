"""`star fit-transform`: from two folders of embeddings to a transform that says how good it is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.table import read_table
from star_jax.embeddings.transforms.descent import DescentConfig
from star_jax.embeddings.transforms.files import read_chain, read_transform
from star_jax.embeddings.transforms.fit import TransformConfig
from star_jax.embeddings.transforms.maps import Identity, Linear, Residual
from star_jax.embeddings.transforms.normal_equations import Moments
from star_jax.embeddings.transforms.transform import SHARED
from star_jax.evaluation.auc import roc_auc
from star_jax.jobs import fit_transform
from tests.embeddings.transforms.versions import Side, drift, write_version
from tests.jobs.together import start

ROOT = Path(__file__).parents[2]
COUNT = 600
FAST = DescentConfig(num_steps=300, validate_every=50, stopping=0.1)
MODES = {
    "ridge": (TransformConfig(), Linear),
    "sgd": (TransformConfig(mode="sgd", descent=FAST), Linear),
    "procrustes": (TransformConfig(mode="procrustes"), Linear),
    "lowrank": (TransformConfig(mode="lowrank", rank=8), Linear),
    "mlp": (TransformConfig(mode="mlp", bias=True, descent=FAST, hidden_size=16), Residual),
}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Version 1 of 12 dimensions, version 2 of 12 and version 3 of 16, with more members."""
    folder = tmp_path_factory.mktemp("market")
    for version, (size, count) in enumerate([(12, COUNT), (12, COUNT + 20), (16, COUNT)], 1):
        sides = {
            "member": drift(size, count, seed=version),
            "job": drift(size, COUNT, seed=10 + version),
        }
        write_version(folder / f"v{version}", sides)
    return folder


def fitted(market, output, config, *, new="v2", old="v1"):
    """The transform and its manifest."""
    fit_transform.run(config, old=str(market / old), new=str(market / new), output=str(output))
    return read_transform(output), artefacts.read_manifest(output, "transform").meta


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_brings_the_old_space_back(market, tmp_path, mode):
    config, kind = MODES[mode]
    transform, meta = fitted(market, tmp_path / "t", config)
    assert (meta["mode"], transform.mode) == (mode, mode)
    for side, name in (("new", "v2"), ("old", "v1")):
        assert meta[side] == artefacts.digest(market / name)
    assert meta["renormalise"] == {"member": True, "job": True}
    for name in ("member", "job"):
        assert isinstance(transform.of(name)[0].map, kind)
        new, old = (np.array(read_table(market / v, name).vectors) for v in ("v2", "v1"))
        mapped = transform.apply(name, new[:COUNT])
        np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-5)
        assert np.sum(mapped * old, axis=1).mean() > 0.9
        figures = meta["held_out"][name]
        assert figures["mapped"]["cosine"] > 0.9 > 0.5 > figures["unmapped"]["cosine"]
        assert figures["mapped"]["alignment_error"] < 0.5 * figures["unmapped"]["alignment_error"]
    counts = meta["pairs"]["member"]
    assert counts["new_rows_alone"] == 20
    assert counts["fit"] + counts["held_out"] + counts["stopping"] == COUNT
    assert (counts["stopping"] > 0) == config.descends
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_chain_leads_two_versions_back(market, tmp_path):
    """By one matrix, of 16 to 12 dimensions: every step was rescaled to unit vectors."""
    for new, old in (("v3", "v2"), ("v2", "v1")):
        fitted(market, tmp_path / new, TransformConfig(), new=new, old=old)
    chain = read_chain([tmp_path / "v3", tmp_path / "v2"])
    assert chain.sizes() == {"member": (16, 12), "job": (16, 12)}
    assert len(chain.of("member")) == 1
    new, old = (np.array(read_table(market / v, "member").vectors) for v in ("v3", "v1"))
    mapped = chain.apply("member", new)
    assert np.sum(mapped * old, axis=1).mean() > 0.9
    steps = [read_transform(tmp_path / v).apply for v in ("v3", "v2")]
    np.testing.assert_allclose(mapped, steps[1]("member", steps[0]("member", new)), atol=1e-5)


def test_a_ridge_fits_the_pairs_that_are_not_held_out(market, tmp_path):
    transform, meta = fitted(market, tmp_path / "t", TransformConfig(ridge=0.01), new="v3")
    new, old = (np.array(read_table(market / v, "job").vectors, float) for v in ("v3", "v1"))
    (step,) = transform.of("job")
    assert isinstance(step.map, Linear)
    mapped = transform.apply("job", new)
    held = _held_out(meta, COUNT)
    x, y = new[~held], old[~held]
    strength = 0.01 * np.square(x).sum() / 16
    expected = np.linalg.solve(x.T @ x + strength * np.eye(16), x.T @ y)
    np.testing.assert_allclose(step.map.factors[0], expected, rtol=1e-4, atol=1e-6)
    off = np.linalg.norm(mapped[held] - old[held], axis=1)
    figures = meta["held_out"]["job"]
    assert figures["mapped"]["alignment_error"] == pytest.approx(off.mean(), rel=1e-4)
    assert figures["unmapped"] is None  # 16 dimensions against 12.
    assert meta["sizes"] == {"member": [16, 12], "job": [16, 12]}


def _held_out(meta, count):
    """Rows that are held out, by the digest of their id."""
    ids = [f"id{i}" for i in range(count)]
    draws = [int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 2**32 for name in ids]
    held = np.array(draws) < 0.1
    assert held.sum() == meta["pairs"]["job"]["held_out"]
    return held


def test_what_a_killed_one_left_is_not_counted(market, tmp_path):
    left = tmp_path / ".t.pairs" / "job"
    left.mkdir(parents=True)
    moments = Moments(12, 12)
    moments.add(np.eye(12), np.eye(12))
    moments.write(left / "moments-00001.npz")
    maps = [fitted(market, tmp_path / name, TransformConfig())[0].of("job")[0] for name in "tu"]
    beside_it, alone = (own.map.arrays()["factor0"] for own in maps)
    np.testing.assert_array_equal(beside_it, alone)


def test_a_shared_map_is_fitted_to_all_node_types(market, tmp_path):
    transform, meta = fitted(market, tmp_path / "t", TransformConfig(shared=True, held_out=0.0))
    assert {*transform.steps} == {SHARED}
    sides = [
        np.concatenate(
            [np.array(read_table(market / v, t).vectors[:COUNT], float) for t in ("job", "member")]
        )
        for v in ("v2", "v1")
    ]
    expected = np.linalg.lstsq(*sides, rcond=None)[0]
    (step,) = transform.of("anything")
    assert isinstance(step.map, Linear)
    np.testing.assert_allclose(step.map.factors[0], expected, rtol=1e-3, atol=1e-5)
    assert meta["held_out"]["job"] == {"mapped": None, "unmapped": None}


def test_gradient_steps_see_all_node_types_of_a_shared_map(market, tmp_path):
    fast = DescentConfig(num_steps=200, batch_size=256, validate_every=100, stopping=0.1)
    stepped = TransformConfig(mode="sgd", shared=True, whiten=True, descent=fast)
    steps = [
        fitted(market, tmp_path / config.mode, config)[0].of("any")[0]
        for config in (stepped, TransformConfig(shared=True))
    ]
    new = np.array(read_table(market / "v2", "job").vectors)
    mapped = [step.map.apply(new) for step in steps]
    np.testing.assert_allclose(mapped[0], mapped[1], atol=0.05)


def test_lengths_are_restored_where_the_old_version_had_them_all_alike(tmp_path):
    """Zeros, of nodes that nothing is known of, do not count."""
    old, new = drift(6, 80), drift(6, 80, seed=1)
    old.vectors[3] = 0
    long = Side(new.ids, old.vectors * np.linspace(1, 2, 80)[:, None])
    write_version(tmp_path / "v1", {"job": old, "member": long})
    write_version(tmp_path / "v2", {"job": new, "member": new})
    _, meta = fitted(tmp_path, tmp_path / "t", TransformConfig(held_out=0.0))
    assert meta["renormalise"] == {"job": True, "member": False}
    assert meta["fits"]["job"]["old_lengths"] == pytest.approx([1, 1])
    assert meta["fits"]["member"]["old_lengths"] == pytest.approx([1, 2])


def test_no_map_is_for_a_version_of_the_same_width(market, tmp_path):
    transform, meta = fitted(market, tmp_path / "t", TransformConfig(mode="none"))
    assert transform.of("job")[0].map == Identity(12)
    assert meta["held_out"]["job"]["mapped"] == meta["held_out"]["job"]["unmapped"]
    with pytest.raises(
        InputError, match="mode none: job has 16 dimensions in the new version and 12 in the old"
    ):
        fitted(market, tmp_path / "u", TransformConfig(mode="none"), new="v3")


def test_what_cannot_be_fitted_is_refused_and_leaves_nothing(market, tmp_path):
    write_version(tmp_path / "texts", {"job": drift(4, 9)}, kind="text_embeddings")
    write_version(tmp_path / "skills", {"skill": drift(4, 9)})
    broken = drift(12, 30)
    broken.vectors[:5] = np.nan
    write_version(tmp_path / "broken", {"job": broken})
    write_version(tmp_path / "few", {"job": drift(4, 3)})
    write_version(tmp_path / "wide", {"job": drift(12, 9), "member": drift(9, 9)})
    (tmp_path / "graph").mkdir()
    artefacts.seal(tmp_path / "graph", "graph", {})
    known = sorted(path.name for path in tmp_path.iterdir())

    def refused(message, old, new, **fields):
        with pytest.raises(InputError, match=message):
            fit_transform.run(
                TransformConfig(**fields),
                old=str(market / old),
                new=str(tmp_path / new),
                output=str(tmp_path / "t"),
            )
        assert sorted(path.name for path in tmp_path.iterdir()) == known

    refused("v1 holds graph_embeddings and .*texts text_embeddings, needed the same", "v1", "texts")
    refused("graph holds graph, needed text_embeddings or graph_embeddings", "v1", "graph")
    refused("skills and .*v1 have no node type in common", "v1", "skills")
    refused("node_types names 'skill', .*v1 has job, member", "v1", "wide", node_types=("skill",))
    refused("nothing is no folder of an artefact", "v1", "nothing")
    refused(
        "shared True needs node types of the same widths, got job 12", "v1", "wide", shared=True
    )
    most = {"held_out": 0.999, "descent": DescentConfig(stopping=0.001)}
    refused("job: no pair is left to fit on of 3 with held_out 0.999", "v1", "few", **most)
    refused("job: none of 3 pairs is left to choose the st", "v1", "few", mode="mlp", held_out=0.0)
    refused("job: a vector of the pairs is not finite; make both anew", "v1", "broken")
    refused("ridge 0.0: the pairs do not span all 4 dim", "v1", "few", ridge=0.0, held_out=0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank 0 must be >= 1"),
        ({"ridge": -1.0}, r"ridge -1\.0 must be >= 0"),
        ({"held_out": 0.96}, r"held_out 0\.96 and descent\.stopping 0\.05 must be shares"),
        ({"memory_limit_gib": 0.01}, r"memory_limit_gib 0\.01 must be >= 0\.1"),
        ({"mode": "none", "bias": True}, "mode 'none' with bias True and whiten False: no map"),
    ],
)
def test_configs_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformConfig(**fields)
    with pytest.raises(ValueError, match=r"stopping 0\.0 must be a share"):
        DescentConfig(stopping=0.0)


def test_texts_pair_by_their_times(tmp_path):
    old, new = drift(6, 80), drift(6, 80, seed=1)
    ids = [f"id{i // 2}" for i in range(80)]
    turned = [*reversed(range(80))]  # The new version has its rows in another order.
    write_version(
        tmp_path / "v1", {"job": Side(ids, old.vectors, list(range(80)))}, kind="text_embeddings"
    )
    moved = Side([ids[i] for i in turned], new.vectors[turned], turned)
    write_version(tmp_path / "v2", {"job": moved}, kind="text_embeddings")
    _, meta = fitted(tmp_path, tmp_path / "t", TransformConfig())
    assert meta["held_out"]["job"]["mapped"]["cosine"] > 0.9


def test_the_command_takes_folders_and_names_of_a_registry(market, tmp_path, star):
    config = ROOT / "configs/transform/ridge.py"
    given = ["fit-transform", config, "--old", market / "v1", "--output", tmp_path / "t"]
    assert star(*given, "--new", market / "v2", "--ridge", "0.5").code == 0
    meta = artefacts.read_manifest(tmp_path / "t", "transform").meta
    assert meta["config"]["ridge"] == 0.5
    assert star(*given, "--new", market / "v1").code == 0  # In the place of the first.
    other = star(*given[:-1], tmp_path, "--new", market / "v2")
    assert other.errors == [
        f"star: error: --output {tmp_path} is there and holds no transform; give another folder"
    ]
    missing = star(*given)
    assert missing.errors == ["star: error: --new is missing; see `star fit-transform --help`"]
    unknown = star(*given, "--new", "jobs@2")
    assert "jobs@2 is no folder of an artefact; as a version, NAME" in unknown.errors[0]
    registry = tmp_path / "registry"
    for version in ("v1", "v2"):
        Registry(str(registry)).add(market / version, "jobs")
    refs = ["--old", "jobs@1", "--new", "jobs@2", "--registry", registry]
    assert star("fit-transform", config, *refs, "--output", tmp_path / "u").code == 0
    named = artefacts.read_manifest(tmp_path / "u", "transform").meta
    assert [named[side] for side in ("new", "old")] == [meta[side] for side in ("new", "old")]


def test_a_consumer_of_the_old_version_goes_on(tmp_path, star):
    """A linear one, trained once, on members that no map was fitted to."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(3000, 16))
    labels = latent @ rng.normal(size=16) > 0
    ids = [f"id{i}" for i in range(len(latent))]
    tables = {}
    for version, noise in (("v1", 0.05), ("v2", 0.4)):
        vectors = latent @ rng.normal(size=(16, 24)) / 4 + noise * rng.normal(size=(3000, 24))
        tables[version] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        write_version(tmp_path / version, {"member": Side(ids, tables[version])})
    train, test = slice(0, 1500), slice(1500, 3000)
    consumer = np.linalg.lstsq(tables["v1"][train], 2.0 * labels[train] - 1, rcond=None)[0]
    fewer = Side(ids[train], tables["v2"][train])  # The map sees none of those that are scored.
    write_version(tmp_path / "v2_train", {"member": fewer})
    config = ROOT / "configs/transform/ridge.py"
    folders = ["--old", tmp_path / "v1", "--new", tmp_path / "v2_train", "--output", tmp_path / "t"]
    assert star("fit-transform", config, *folders).code == 0
    mapped = read_transform(tmp_path / "t").apply("member", tables["v2"][test])
    given = {"old": tables["v1"][test], "mapped": mapped, "unmapped": tables["v2"][test]}
    scores = {name: roc_auc(labels[test], vectors @ consumer) for name, vectors in given.items()}
    assert scores["old"] > 0.98
    assert 0.9 < scores["mapped"] < scores["old"]
    assert scores["unmapped"] < 0.7


def test_processes_share_the_rows(market, tmp_path):
    """Two real ones: the map is that of one."""
    alone, meta = fitted(market, tmp_path / "alone", TransformConfig())
    config = "from configs.transform.ridge import get_config"
    given = {"old": market / "v1", "new": market / "v2", "output": tmp_path / "t"}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    running = start(tmp_path, 2, "fit-transform", config, options=options)
    codes = [process.wait(timeout=300) for process in running]
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    assert f"job: this process added up {meta['pairs']['job']['fit'] // 2} pairs" in logs[0]
    together = read_transform(tmp_path / "t")
    for name in ("member", "job"):
        maps = [each.of(name)[0].map for each in (together, alone)]
        arrays = [own.arrays()["factor0"] for own in maps]
        np.testing.assert_allclose(arrays[0], arrays[1], rtol=1e-5, atol=1e-7)
    assert not list(tmp_path.glob(".*"))
