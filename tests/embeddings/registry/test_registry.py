import json

import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry import registry as module
from star_jax.embeddings.registry.registry import Registry, locate
from tests.embeddings.registry.artefact import contract, embeddings, link, serve, write


def test_versions_come_back_as_they_were_added(registry, tmp_path):
    first = registry.add(embeddings(tmp_path / "a", "a"), "market", code_version="c0ffee")
    second = registry.add(embeddings(tmp_path / "b", "b"), "market", reports={"metrics": {"x": 1}})
    assert (first.ref, second.ref) == ("market@1", "market@2")
    assert first.digest == artefacts.digest(tmp_path / "a")
    assert first.parents == {"model": "m" * 64, "graph_version": "g" * 64}
    record = registry.record("market@1")
    assert (record["code"], record["config"]) == ("c0ffee", None)
    assert record["meta"] == artefacts.read_manifest(tmp_path / "a", "graph_embeddings").meta
    assert registry.reports("market@2") == {"metrics": {"x": 1}}
    for name, ref in (("a", "market@1"), ("b", "market@2")):
        folder = registry.folder(ref)
        artefacts.verify(folder)
        assert artefacts.digest(folder) == artefacts.digest(tmp_path / name)
    assert registry.verify().problems == registry.verify().left_over == []
    assert Registry(registry.url).state().versions == registry.state().versions


def test_the_same_content_is_stored_once(registry, tmp_path):
    first = registry.add(embeddings(tmp_path / "a"), "market")
    assert registry.add(embeddings(tmp_path / "b"), "market") == first
    other = registry.add(tmp_path / "b", "other")
    assert (other.ref, other.digest) == ("other@1", first.digest)
    files = registry._files.names("objects")
    assert len(files) == 3
    assert len(registry.events()) == 2
    manifest = tmp_path / "b" / artefacts.MANIFEST  # Of another release of star_jax.
    manifest.write_text(manifest.read_text().replace('"star_jax": "', '"star_jax": "1'))
    assert registry.add(tmp_path / "b", "third").digest == first.digest
    assert registry.verify().problems == []
    with pytest.raises(InputError, match="other@1 was added with code None, got c0ffee, and never"):
        registry.add(tmp_path / "b", "other", code_version="c0ffee")


def test_a_report_is_added_once(registry, tmp_path):
    registry.add(embeddings(tmp_path / "a"), "market", reports={"metrics": {"x": 1}})
    registry.add(tmp_path / "a", "market", reports={"metrics": {"x": 1}, "ablation": [1, 2]})
    assert registry.reports("market@1") == {"metrics": {"x": 1}, "ablation": [1, 2]}
    with pytest.raises(InputError, match="market@1 has another report metrics, which never change"):
        registry.add(tmp_path / "a", "market", reports={"metrics": {"x": 2}})
    with pytest.raises(InputError, match="market@1 has a report ablation, which never changes"):
        registry.attach("market@1", "ablation", [])


def test_an_addition_that_others_outrun_takes_the_next_number(registry, tmp_path, monkeypatch):
    registry.add(embeddings(tmp_path / "a", "a"), "market")
    append, others = module.append, [Registry(registry.url)]

    def after_others(*args):
        if others:
            others.pop().add(embeddings(tmp_path / "b", "b"), "market")
        return append(*args)

    monkeypatch.setattr(module, "append", after_others)
    assert registry.add(embeddings(tmp_path / "c", "c"), "market").ref == "market@3"
    for number, name in enumerate("abc", start=1):
        digest = registry.version(f"market@{number}").digest
        assert digest == artefacts.digest(tmp_path / name)
    assert registry.verify().left_over == []


def test_config_and_inputs_are_those_of_the_same_content(tmp_path):
    registry, folder = Registry(tmp_path / "r"), embeddings(tmp_path / "a")
    digest = artefacts.digest(folder)
    stage = {"config": {"seed": 1}, "inputs": {"graph_model": "m" * 64, "tables": "t"}}
    artefacts.write_text(folder / artefacts.STAGE, json.dumps(stage | {"output": digest}))
    registry.add(folder, "market")
    assert registry.record("market@1")["config"] == {"seed": 1}
    parents = {"model": "m" * 64, "graph_version": "g" * 64, "tables": "t"}
    assert registry.version("market@1").parents == parents
    artefacts.write_text(folder / artefacts.STAGE, json.dumps(stage | {"output": "another"}))
    registry.add(folder, "stale")
    assert registry.record("stale@1")["config"] is None
    (folder / "job.json").write_text(json.dumps(stage), encoding="utf-8")
    registry.add(folder, "trained")
    assert registry.record("trained@1")["config"] == {"seed": 1}


def test_promotion_moves_the_alias_and_rolls_back(local):
    local.remove_consumer("ads", "market")
    for ref, states in (
        ("market@2", ["deprecated", "active", "candidate"]),
        ("market@3", ["deprecated", "deprecated", "active"]),
        ("market@previous", ["deprecated", "active", "deprecated"]),
    ):
        local.promote(ref)
        assert [v.state for v in local.state().of_name("market")] == states
    assert local.version("market").ref == "market@2"
    assert local.folder("market") == local.folder("market@2")
    assert local.folder("market@1").is_dir()  # Deprecated ones stay readable.
    with pytest.raises(InputError, match="market@2 is active already"):
        local.promote("market@active")
    with pytest.raises(InputError, match=r"market@9 is none of market@1, .*, market@active, "):
        local.promote("market@9")


def test_promotion_needs_what_its_consumers_need(local, tmp_path):
    with pytest.raises(
        InputError,
        match=(
            r"market@2 cannot be promoted: consumer ads \(ann\), trained on market@1: no chain of "
            r"at most 5 transforms leads from market@2 to market@1; run `star "
            r"fit-transform CONFIG --registry R --old market@1 --new market@2 --output MAP` and "
        ),
    ):
        local.promote("market@2")
    new, old = local.version("market@2"), local.version("market@1")
    transform = local.add(link(tmp_path / "t", new, old), "map")
    with pytest.raises(InputError, match="no contract says that market@2 serves it through map@1;"):
        local.promote("market@2")
    broken = contract(tmp_path / "c", new, old, transform, ["auc 0.9 -> 0.6"])
    local.add(broken, "agreed")
    with pytest.raises(InputError, match=r"through map@1 breaks its contract: auc 0\.9 -> 0\.6"):
        local.promote("market@2")
    assert local.version("market").ref == "market@1"
    local.add(contract(tmp_path / "c", new, old, transform), "agreed")
    assert local.promote("market@2").state == "active"
    assert local.unserved() == {}
    assert local.chain("market", "market@1") == [local.folder("map@1")]


def test_vectors_that_serve_as_they_are_need_no_map(local, tmp_path):
    new, old = local.version("market@2"), local.version("market@1")
    local.add(contract(tmp_path / "c", new, old, None, ["auc fell"]), "agreed")
    with pytest.raises(InputError, match="no chain of at most 5"):
        local.promote("market@2")
    local.add(contract(tmp_path / "c", new, old, None), "agreed")
    local.promote("market@2")


def test_a_long_chain_serves_once_it_is_one(local, tmp_path):
    serve(local, tmp_path, "market@2", "market@1")
    serve(local, tmp_path, "market@3", "market@2")
    assert local.chain("market@3", "market@1") == [local.folder("map@2"), local.folder("map@1")]
    with pytest.raises(InputError, match=r"by map@2, map@1; write them as one by `star registry "):
        local.promote("market@3")
    with pytest.raises(InputError, match="no chain of at most 1 transforms leads from market@3"):
        Registry(local.url, max_chain=1).chain("market@3", "market@1")
    serve(local, tmp_path, "market@3", "market@1", name="composed")
    local.promote("market@3")


def test_a_consumer_of_another_name_does_not_matter(local, tmp_path):
    local.promote("market@2", force_reason="now")
    local.add(embeddings(tmp_path / "o", "other"), "other")
    assert local.promote("other@1").state == "active"


def test_what_was_forced_is_kept(local):
    local.promote("market@2", force_reason="ads agreed")
    note, reason = local.version("market@2").notes
    assert note.endswith("promote market@2 (ads agreed)")
    assert reason.startswith("consumer ads (ann), trained on market@1: no chain")
    assert list(local.unserved().values()) == [reason]
    with pytest.raises(InputError, match="market@3 cannot be promoted: consumer ads"):
        local.promote("market@3")  # It is not served either.
    local.promote("market@1")
    assert local.unserved() == {}


def test_a_consumer_keeps_what_serves_it(local, tmp_path):
    serve(local, tmp_path, "market@2", "market@1")
    local.promote("market@2")
    for ref in ("map@1", "map-contract@1"):
        with pytest.raises(InputError, match=f"{ref} is needed: consumer ads"):
            local.deprecate(ref)
    local.retire("market@1", delete_files=True)  # The map serves it.
    assert local.unserved() == {}
    with pytest.raises(InputError, match="market@1 is retired"):
        local.folder("market@1")
    local.remove_consumer("ads", "market")
    assert local.deprecate("map@1").state == "deprecated"


def test_a_map_that_is_added_or_promoted_takes_no_consumer_away(local, tmp_path):
    serve(local, tmp_path, "market@2", "market@1")
    local.promote("market@2")
    new, old = local.version("market@2"), local.version("market@1")
    local.add(link(tmp_path / "other", new, old, "other"), "map")
    assert local.unserved() == {}
    assert local.chain("market@2", "market@1") == [local.folder("map@1")]
    local.promote("map@1")
    with pytest.raises(InputError, match=r"map@2 cannot be promoted: consumer ads .*no contract"):
        local.promote("map@2")
    local.add(contract(tmp_path / "c", new, old, local.version("map@2")), "map-contract")
    local.promote("map@2")
    assert local.chain("market@2", "market@1") == [local.folder("map@2")]


def test_a_consumer_of_a_retired_version_needs_it_again(local, tmp_path):
    serve(local, tmp_path, "market@2", "market@1")
    local.promote("market@2")
    local.retire("market@1")
    with pytest.raises(InputError, match=r"once market@1 is retired, add its artefact again and"):
        local.promote("market@3")
    local.add(tmp_path / "w" / "v1", "market")
    serve(local, tmp_path, "market@3", "market@4")
    assert local.promote("market@3").state == "active"


def test_a_version_with_a_consumer_that_nothing_serves_is_not_retired(local):
    local.promote("market@2", force_reason="now")
    with pytest.raises(InputError, match=r"market@1 cannot be retired: consumer ads .*no chain of"):
        local.retire("market@1")
    local.add_consumer("ads", "market@2", "ann")  # It was trained anew.
    local.retire("market@1")
    with pytest.raises(InputError, match="market@1 is retired; add its artefact again to use it"):
        local.promote("market@1")
    with pytest.raises(InputError, match="market@previous is none of market@1"):
        local.promote("market@previous")
    with pytest.raises(InputError, match="consumer ads of market is owned by ann, got bob"):
        local.add_consumer("ads", "market@2", "bob")


def test_where_none_is_active_a_consumer_keeps_its_version(tmp_path):
    registry = Registry(tmp_path / "r")
    registry.add(embeddings(tmp_path / "a"), "market")
    registry.add_consumer("ads", "market@1", "ann")
    registry.deprecate("market@1")
    assert registry.unserved() == {}
    with pytest.raises(InputError, match="market@1 cannot be retired: consumer ads"):
        registry.retire("market@1")


def test_retirement_goes_step_by_step_and_frees_files_once_nobody_has_them(local, tmp_path):
    with pytest.raises(InputError, match="market@2 is candidate, needed deprecated; deprecate it"):
        local.retire("market@2")
    with pytest.raises(InputError, match="market@1 is active; promote another version"):
        local.deprecate("market@1")
    local.add(tmp_path / "w" / "v2", "copy")
    for name in ("market@2", "copy@1"):
        local.deprecate(name)
    local.alias("market@2", "canary")
    with pytest.raises(InputError, match="market@2 is market@canary; run `star registry unalias`"):
        local.retire("market@2")
    local.unalias("market", "canary")
    folder = local.folder("market@2")
    local.retire("market@2", delete_files=True)
    assert folder.is_dir()  # Another name has it.
    local.retire("copy@1")
    assert folder.is_dir()
    local.retire("copy@1", delete_files=True)
    assert not folder.exists()
    assert local.record("copy@1")["kind"] == "graph_embeddings"
    assert local.verify().problems == local.verify().left_over == []
    assert local.add(tmp_path / "w" / "v2", "market").ref == "market@4"
    assert local.folder("market@4") == folder


def test_what_made_a_living_version_is_not_retired(tmp_path):
    registry = Registry(tmp_path / "r")
    model = registry.add(write(tmp_path / "m", "graph_model"), "model")
    registry.add(embeddings(tmp_path / "e", model=model.digest), "market")
    registry.deprecate("model@1")
    with pytest.raises(InputError, match="model@1 is the model of market@1, which is candidate;"):
        registry.retire("model@1")
    registry.deprecate("market@1")
    registry.retire("market@1")
    registry.retire("model@1")


def test_an_artefact_that_is_not_whole_is_not_added(tmp_path):
    registry, folder = Registry(tmp_path / "r"), embeddings(tmp_path / "a")
    (folder / "rows.bin").write_bytes(b"y rows")
    with pytest.raises(InputError, match=r"rows\.bin does not have the sha256"):
        registry.add(folder, "market")
    assert registry.state().versions == {}
    write(tmp_path / "c", "contract", new="n", old="o", transform=None)
    with pytest.raises(InputError, match="says nothing of passed, breaks in its meta"):
        registry.add(tmp_path / "c", "c")
    with pytest.raises(InputError, match="nothing is not a complete artefact"):
        registry.add(tmp_path / "nothing", "market")


def test_a_ref_or_a_folder(local, tmp_path):
    folder = tmp_path / "w" / "v1"
    assert locate(str(folder), None) == folder
    assert locate("market@2", local.url) == local.folder("market@2")
    with pytest.raises(InputError, match=r"market@2 is no folder of an artefact; .*--registry"):
        locate("market@2", None)
    with pytest.raises(InputError, match="elsewhere is no registry; `star registry add"):
        locate("market@2", str(tmp_path / "elsewhere"))
