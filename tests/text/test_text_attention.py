"""Attention against loops."""

import jax
import numpy as np
import pytest

from star_jax.text.attention import Visibility, attention
from star_jax.text.bert import gelu

U, L, H, G, K = 2, 7, 4, 2, 3


def by_definition(query, key, value, mask, segments, span, window, scale=K**-0.5, bias=None):
    out = np.zeros((U, L, H, K))
    for u in range(U):
        for i in range(L):
            for h in range(H):
                g = h // (H // G)
                seen = [
                    j
                    for j in range(L)
                    if mask[u, j]
                    and (segments is None or segments[u, i] == segments[u, j])
                    and (span == "bidirectional" or j <= i)
                    and (window is None or abs(i - j) < window)
                ]
                if not seen:
                    continue
                logits = np.array([query[u, i, h] @ key[u, j, g] for j in seen]) * scale
                logits += 0.0 if bias is None else bias[h, i, seen]
                weight = np.exp(logits - logits.max())
                weight /= weight.sum()
                out[u, i, h] = sum(w * value[u, j, g] for w, j in zip(weight, seen, strict=True))
    return out


@pytest.mark.parametrize("span", ["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_is_its_definition(span, window, packed):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(U, L, H, K)).astype(np.float32)
    key, value = rng.normal(size=(2, U, L, G, K)).astype(np.float32)
    mask = np.arange(L)[None] < np.array([L, 4])[:, None]
    segments = np.array([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 9, 9, 9]], np.int32)
    segments = segments if packed else None
    got = jax.jit(
        lambda q, k, v, m, s: attention(
            q, k, v, Visibility(m, s), span=span, window=window, backend="xla"
        )
    )(query, key, value, mask, segments)
    expected = by_definition(query, key, value, mask, segments, span, window)
    np.testing.assert_allclose(got[mask], expected[mask], atol=1e-6)


def test_scale_and_bias_are_their_definition():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(U, L, H, K)).astype(np.float32)
    key, value = rng.normal(size=(2, U, L, G, K)).astype(np.float32)
    bias = rng.normal(size=(H, L, L)).astype(np.float32)
    mask = np.arange(L)[None] < np.array([L, 4])[:, None]
    got = jax.jit(
        lambda q, k, v, m, b: attention(
            *(q, k, v, Visibility(m, None)),
            span="bidirectional",
            window=None,
            backend="xla",
            scale=1.0,
            bias=b,
        )
    )(query, key, value, mask, bias)
    expected = by_definition(query, key, value, mask, None, "bidirectional", None, 1.0, bias)
    np.testing.assert_allclose(got[mask], expected[mask], atol=1e-6)


def test_nothing_visible_stays_finite():
    zeros = np.ones((1, 3, 1, 2), np.float32)
    mask = np.zeros((1, 3), bool)

    def total(q, k, v, m):
        visible = Visibility(m, None)
        return attention(q, k, v, visible, span="causal", window=None, backend="xla").sum()

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(zeros, zeros, zeros, mask)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_gelu_and_its_derivative():
    x = np.linspace(-9.0, 9.0, 301, dtype=np.float32)[:, None]
    got = jax.jit(jax.value_and_grad(lambda x: gelu(x).sum()))(x)
    expected = jax.jit(jax.value_and_grad(lambda x: jax.nn.gelu(x, approximate=False).sum()))(x)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], atol=2e-6)
    np.testing.assert_allclose(jax.jit(gelu)(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    primal = jax.jit(lambda x: jax.jvp(gelu, (x,), (x,))[0])(x)  # What training computes.
    np.testing.assert_allclose(primal, jax.nn.gelu(x, approximate=False), atol=1e-6)
