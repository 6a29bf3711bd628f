"""Every back end against the reference."""

import importlib.util
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.text import attention_kernels as kernels
from star_jax.text.attention import Visibility, attention

NUM_HEADS, NUM_GROUPS = 4, 2


def states(length, head_width, num_rows=2, scale=1.0):
    """Queries, keys, values and what the result is multiplied by."""
    heads = (NUM_HEADS, NUM_GROUPS, NUM_GROUPS, NUM_HEADS)
    shapes = [(num_rows, length, num, head_width) for num in heads]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def rows(length, packed):
    """A row that is nearly full, and one that is half padding."""
    place = np.arange(length)[None, :]
    mask = place < np.array([[length - 3], [length // 2]])
    segments = np.where(mask, place // (length // 4), 9)
    return Visibility(jnp.asarray(mask), jnp.asarray(segments) if packed else None)


def with_gradients(attend, inputs, visible, loss_scale):
    """The result on all tokens, and gradients of a loss of the real ones."""

    def loss(query, key, value):
        mixed = attend(query, key, value, visible)
        real = jnp.where(visible.mask[:, :, None, None], mixed, 0.0)
        return jnp.sum(real * loss_scale), mixed

    (_, mixed), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return mixed, grads


def assert_same(attend, reference, visible, inputs, loss_scale):
    mixed, grads = with_gradients(attend, inputs, visible, loss_scale)
    expected, expected_grads = with_gradients(reference, inputs, visible, loss_scale)
    real = np.asarray(visible.mask)
    np.testing.assert_allclose(np.asarray(mixed)[real], np.asarray(expected)[real], atol=2e-6)
    assert np.all(np.isfinite(mixed))  # On padding too.
    for got, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


CASES = [
    pytest.param(True, "causal", None, id="packed causal"),
    pytest.param(True, "bidirectional", None, id="packed bidirectional"),
    pytest.param(False, "causal", 40, id="causal window"),
]


@pytest.mark.parametrize(("packed", "span", "window"), CASES)
def test_splash_is_the_reference(packed, span, window):
    length = 250 if span == "causal" else 128  # Padded to two blocks, or one that is full.
    *inputs, loss_scale = states(length, 64)
    visible = rows(length, packed)

    def attend(query, key, value, visible):
        options: dict[str, Any] = {
            "span": span,
            "window": window,
            "scale": 0.125,
            "interpret": True,
        }
        return kernels.splash(query, key, value, *visible, **options)

    reference = partial(attention, span=span, window=window, backend="xla")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_LONGEST_BLOCK", 128)
        assert_same(attend, reference, visible, inputs, loss_scale)


@pytest.mark.skipif(
    importlib.util.find_spec("tokamax") is None, reason="needs tokamax: Python 3.12 or newer"
)
@pytest.mark.parametrize(("packed", "span", "window"), CASES)
def test_tokamax_is_the_reference(packed, span, window):
    *inputs, loss_scale = states(80, 16)
    visible = rows(80, packed)

    def attend(query, key, value, visible):
        options: dict[str, Any] = {
            "span": span,
            "window": window,
            "scale": 0.25,
            "implementation": ("xla_chunked",),
        }
        return kernels.tokamax(query, key, value, *visible, **options)

    reference = partial(attention, span=span, window=window, backend="xla")
    assert_same(attend, reference, visible, inputs, loss_scale)


STATIC = ("scale", "is_causal", "local_window_size")


@pytest.mark.parametrize(("span", "window"), [("causal", 5), ("bidirectional", None)])
def test_cudnn_is_told_what_to_compute(span, window):
    *inputs, _ = states(16, 8)
    visible = rows(16, packed=False)
    options = kernels.cudnn_options(visible.mask, span=span, window=window, scale=0.5)
    elsewhere = jax.jit(
        partial(jax.nn.dot_product_attention, implementation="xla"), static_argnames=STATIC
    )
    got = elsewhere(*inputs, **options)
    reference = partial(attention, span=span, window=window, backend="xla", scale=0.5)
    real = np.asarray(visible.mask)
    np.testing.assert_allclose(got[real], jax.jit(reference)(*inputs, visible)[real], atol=2e-6)
    lengths = options.pop("query_seq_lengths")
    assert lengths.dtype == jnp.int32
    assert lengths.tolist() == [13, 8]
    assert options.pop("key_value_seq_lengths").tolist() == [13, 8]
    assert options == {
        "scale": 0.5,
        "is_causal": span == "causal",
        "local_window_size": None if window is None else (window - 1, 0),
    }


def test_a_row_without_text_has_a_length_for_cudnn():
    options = kernels.cudnn_options(jnp.zeros((2, 4), bool), span="causal", window=None, scale=1.0)
    assert options["key_value_seq_lengths"].tolist() == [1, 1]


def test_cudnn_refuses_a_window_that_looks_ahead():
    query, key, value, _ = (x.astype(jnp.bfloat16) for x in states(16, 8))
    options: dict[str, Any] = {"span": "bidirectional", "window": 5, "backend": "cudnn"}
    with pytest.raises(ValueError, match="cuDNN doesn't support right window"):
        attention(query, key, value, rows(16, packed=False), **options)


@pytest.mark.parametrize(
    ("backend", "bias", "message"),
    [
        ("cudnn", None, "attention_backend cudnn got several texts a row"),
        ("splash", jnp.zeros((NUM_HEADS, 16, 16)), "attention_backend splash got a bias"),
    ],
)
def test_a_case_that_a_back_end_cannot_do_is_refused(backend, bias, message):
    query, key, value, _ = states(16, 8)
    options: dict[str, Any] = {"span": "causal", "window": None, "backend": backend, "bias": bias}
    with pytest.raises(ValueError, match=message):
        attention(query, key, value, rows(16, packed=True), **options)


def test_splash_compiles_to_three_kernels_of_a_tpu():
    *inputs, loss_scale = states(200, 64)

    def loss(query, key, value, visible):
        mixed = attention(query, key, value, visible, span="causal", window=None, backend="splash")
        return jnp.sum(mixed * loss_scale)

    lowered = lower_for_tpu(jax.grad(loss, argnums=(0, 1, 2)), *inputs, rows(200, packed=True))
    assert lowered.count("tpu_custom_call") == 3  # Forward, and two backward.


@pytest.mark.parametrize(
    ("config", "local"),
    [(MeshConfig(fsdp=2), "1x4x128x128xf32"), (MeshConfig(fsdp=2, tensor=2), "2x2x128x128xf32")],
    ids=["rows", "rows and heads"],
)
def test_splash_runs_on_each_devices_rows_and_heads(config, local):
    *inputs, _ = states(128, 128, num_rows=8)
    visible = jax.tree.map(lambda x: jnp.tile(x, (4, 1)), rows(128, packed=True))
    mesh = make_mesh(config)
    placed = jax.device_put((*inputs, visible), jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    attend = partial(attention, span="causal", window=None, backend="splash")
    with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
        lower_for_tpu(attend, *placed)
    with jax.set_mesh(mesh):
        lowered = lower_for_tpu(attend, *placed)
    assert f"tensor<{local}>" in lowered


def lower_for_tpu(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
