import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.transforms import files
from star_jax.embeddings.transforms.files import read_chain, read_transform, write_transform
from star_jax.embeddings.transforms.maps import Identity, Linear, Residual, gelu, linear
from star_jax.embeddings.transforms.transform import SHARED, Step, Transform, compose

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def matrix(size_in, size_out, *, bias=False):
    return linear(normal(size_in, size_out), normal(size_out) if bias else None)


def residual(size_in, size_out, width=5):
    inner = normal(size_in, width), normal(width), normal(width, size_out)
    return Residual(matrix(size_in, size_out, bias=True), *inner)


def link(new, own, *, renormalise=False, node_types=("member",)):
    """The transform of version `new` to the one before."""
    steps = {name: (Step(own, renormalise),) for name in node_types}
    return Transform("ridge", f"v{new}", f"v{new - 1}", steps)


CHAIN = [
    link(4, matrix(7, 5)),
    link(3, Linear((normal(5, 2), normal(2, 6)), normal(6))),
    link(2, matrix(6, 4, bias=True)),
]


def unit(rows):
    return np.stack([row / np.sqrt(np.sum(row**2)) for row in rows])


def one_after_the_other(transforms, vectors, node_type="member"):
    for each in transforms:
        vectors = each.apply(node_type, vectors)
    return vectors


def test_a_linear_map_is_the_papers_equation_8():
    own = matrix(3, 2)
    vectors = normal(6, 3)
    expected = [own.factors[0].T.astype(np.float64) @ z for z in vectors]
    np.testing.assert_allclose(link(1, own).apply("member", vectors), expected, rtol=1e-5)
    got = link(1, own, renormalise=True).apply("member", vectors)
    np.testing.assert_allclose(got, unit(expected), rtol=1e-5)
    assert got.dtype == np.float32


def test_a_network_is_what_jax_makes_of_it():
    own, vectors = residual(3, 4), normal(6, 3)
    inner = jax.nn.gelu(vectors @ own.hidden + own.hidden_bias[None, :], approximate=True)
    expected = own.linear.apply(vectors) + np.asarray(inner) @ own.output
    np.testing.assert_allclose(own.apply(vectors), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gelu(vectors), jax.nn.gelu(vectors, approximate=True), atol=1e-6)


def test_rows_of_zeros_stay():
    got = link(1, matrix(3, 2), renormalise=True).apply("member", np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(got, np.zeros((2, 2)))


def test_a_chain_of_linear_maps_is_one_matrix_in_any_grouping():
    vectors = normal(9, 7)
    whole = compose(CHAIN)
    (step,) = whole.of("member")
    assert isinstance(step.map, Linear)
    assert len(step.map.factors) == 1
    assert (whole.new, whole.old, whole.sizes()) == ("v4", "v1", {"member": (7, 4)})
    a, b, c = CHAIN
    expected = one_after_the_other(CHAIN, vectors)
    for grouped in (whole, compose([compose([a, b]), c]), compose([a, compose([b, c])])):
        np.testing.assert_allclose(grouped.apply("member", vectors), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "num_steps"),
    [
        ((matrix(4, 4, bias=True), True), (matrix(4, 3), True), 1),  # Only the direction counts.
        ((matrix(4, 4), True), (matrix(4, 3), False), 2),
        ((matrix(4, 4), True), (matrix(4, 3, bias=True), True), 2),
        ((matrix(4, 4), False), (matrix(4, 3, bias=True), True), 1),
        ((residual(4, 4), False), (matrix(4, 3), False), 2),
        ((matrix(4, 4), False), (residual(4, 3), False), 2),
        ((residual(4, 4), True), (Identity(4), False), 1),
        ((Identity(4), False), (residual(4, 3), True), 1),
        ((Identity(4), True), (matrix(4, 3, bias=True), True), 2),
    ],
)
def test_steps_are_joined_where_nothing_changes(first, second, num_steps):
    links = [link(2, first[0], renormalise=first[1]), link(1, second[0], renormalise=second[1])]
    whole, vectors = compose(links), normal(9, 4)
    assert len(whole.of("member")) == num_steps
    expected = one_after_the_other(links, vectors)
    np.testing.assert_allclose(whole.apply("member", vectors), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_map_serves_the_node_types_of_the_next():
    shared = link(2, matrix(4, 4), node_types=(SHARED,))
    own = link(1, matrix(4, 3), node_types=("member", "job"))
    vectors = normal(5, 4)
    expected = one_after_the_other([shared, own], vectors, "job")
    whole = compose([shared, own])
    assert {*whole.steps} == {"member", "job"}
    np.testing.assert_allclose(whole.apply("job", vectors), expected, rtol=1e-4, atol=1e-5)
    back = compose([own._replace(new="v2", old="v1"), link(1, matrix(3, 4), node_types=(SHARED,))])
    assert {*back.steps} == {"member", "job"}
    both = compose([shared, link(1, matrix(4, 2), node_types=(SHARED,))])
    assert both.sizes() == {SHARED: (4, 2)}
    fewer = compose([link(2, matrix(4, 4), node_types=("job", "skill")), own])
    assert {*fewer.steps} == {"job"}


def test_what_does_not_meet_is_named():
    with pytest.raises(InputError, match=r"ridge v4 -> v3 gives vectors of v3, the next one \(rid"):
        compose([CHAIN[0], CHAIN[2]])
    with pytest.raises(
        InputError,
        match=r"ridge v3 -> v2 gives member vectors of 6 dimensions, the next one \(ridge v2 -> v1",
    ):
        compose([CHAIN[1], link(2, matrix(5, 4))])
    with pytest.raises(InputError, match=r"maps job, the next one \(ridge v2 -> v1\) member: no n"):
        compose([link(3, matrix(7, 6), node_types=("job",)), CHAIN[2]])
    with pytest.raises(InputError, match="ridge v4 -> v3 maps member, not node type 'job'"):
        CHAIN[0].apply("job", normal(2, 7))
    with pytest.raises(InputError, match="maps member vectors of 7 dimensions, got 5"):
        CHAIN[0].apply("member", normal(2, 5))


@pytest.mark.parametrize(
    "own",
    [Identity(4), matrix(4, 3), Linear((normal(4, 1), normal(1, 3)), normal(3)), residual(4, 3)],
    ids=lambda own: type(own).__name__,
)
def test_artefacts_come_back(tmp_path, own):
    steps = (Step(own, True), Step(Identity(own.widths()[1]), False))
    written = Transform("ridge", "v2", "v1", {"member": steps, "job": (Step(own, False),)})
    write_transform(tmp_path / "t", written, {"pairs": 7})
    read = read_transform(tmp_path / "t")
    assert read[:3] == written[:3]
    for name, expected in written.steps.items():
        assert [step.renormalise for step in read.of(name)] == [s.renormalise for s in expected]
        vectors = normal(5, 4)
        np.testing.assert_array_equal(read.apply(name, vectors), written.apply(name, vectors))
    meta = artefacts.read_manifest(tmp_path / "t", "transform").meta
    assert meta["sizes"] == {name: list(own.widths()) for name in ("member", "job")}
    assert (meta["new"], meta["old"], meta["pairs"]) == ("v2", "v1", 7)
    with pytest.raises(ValueError, match=r"may not hold \['mode'\]"):
        write_transform(tmp_path / "u", written, {"mode": "x"})


def test_a_linear_map_of_200_takes_less_than_a_megabyte(tmp_path):
    write_transform(tmp_path / "t", link(1, matrix(200, 200, bias=True)), {})
    assert sum(path.stat().st_size for path in (tmp_path / "t").rglob("*.*")) < 1e6


def test_damaged_artefacts_are_named(tmp_path):
    write_transform(tmp_path / "t", link(1, matrix(4, 3, bias=True)), {})
    meta = artefacts.read_manifest(tmp_path / "t", "transform").meta
    np.save(tmp_path / "t" / "member" / "0-bias.npy", normal(4))
    artefacts.seal(tmp_path / "t", "transform", meta)
    with pytest.raises(InputError, match=r"t/member holds bias \(4,\), factor0 \(4, 3\), needed a"):
        read_transform(tmp_path / "t")
    artefacts.seal(tmp_path / "t", "transform", {"mode": "ridge"})
    with pytest.raises(
        InputError, match=r"manifest.json describes no transform \(KeyError\('steps"
    ):
        read_transform(tmp_path / "t")


def test_a_chain_is_composed_once(tmp_path, monkeypatch):
    folders = [tmp_path / str(i) for i in range(3)]
    for folder, each in zip(folders, CHAIN, strict=True):
        write_transform(folder, each, {})
    whole = read_chain(folders)
    vectors = normal(5, 7)
    expected = one_after_the_other(CHAIN, vectors)
    np.testing.assert_allclose(whole.apply("member", vectors), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(files, "compose", None)  # It would be called.
    assert read_chain(folders) is whole
    with pytest.raises(TypeError):
        read_chain(folders[:2])
