"""Small artefacts for a registry."""

from star_jax import artefacts


def write(folder, kind, content="x", **meta):
    """An artefact of two files; returns its folder."""
    with artefacts.writing(folder, kind) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "vectors.bin").write_bytes(f"{content} vectors".encode())
        (partial / "rows.bin").write_bytes(f"{content} rows".encode())
        artefacts.set_meta(partial, meta)
    return folder


def embeddings(folder, content="x", model="m" * 64):
    """Vectors that some model made."""
    return write(folder, "graph_embeddings", content, model=model, graph="g" * 64)


def link(folder, new, old, content="x"):
    """A transform between two versions."""
    return write(folder, "transform", content, mode="ridge", new=new.digest, old=old.digest)


def contract(folder, new, old, transform, breaks=()):
    """What consumers of a version say about another one."""
    return write(
        folder,
        "contract",
        new=new.digest,
        old=old.digest,
        transform=transform and transform.digest,
        passed=not breaks,
        breaks=list(breaks),
    )


def serve(registry, folder, new, old, *, breaks=(), name="map"):
    """Adds a transform and its contract."""
    new, old = registry.version(new), registry.version(old)
    transform = registry.add(link(folder / "t", new, old), name)
    agreed = contract(folder / "c", new, old, transform, breaks)
    return transform, registry.add(agreed, f"{name}-contract")
