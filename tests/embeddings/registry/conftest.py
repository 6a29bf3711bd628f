"""Registries to begin with."""

import uuid

import pytest

from star_jax.embeddings.registry.registry import Registry
from tests.embeddings.registry.artefact import embeddings


@pytest.fixture(params=["path", "memory"])
def registry(request, tmp_path, monkeypatch):
    """An empty registry of each kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    urls = {"path": str(tmp_path / "r"), "memory": f"memory://{uuid.uuid4().hex}/r"}
    return Registry(urls[request.param])


@pytest.fixture
def local(tmp_path):
    """A registry with three versions, the first one active and used by ads."""
    registry = Registry(tmp_path / "r")
    for number in (1, 2, 3):
        registry.add(embeddings(tmp_path / "w" / f"v{number}", f"v{number}"), "market")
    registry.promote("market@1")
    registry.add_consumer("ads", "market", "ann")
    return registry
