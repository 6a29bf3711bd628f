"""Normalisation over real rows only, of all devices together."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.graph.encoder import MaskedBatchNorm


class TestBatchNorm:
    ROWS = np.random.default_rng(0).normal(2.0, 3.0, (6, 4)).astype(np.float32)
    MASK = np.array([True, True, False, True, True, False])

    def run(self, rows, mask, train, stats=None, axis=None):
        norm = MaskedBatchNorm(0.9, axis)
        params = {"scale": jnp.full(4, 1.5), "bias": jnp.full(4, 0.5)}
        start = {"mean": jnp.zeros(4), "variance": jnp.ones(4)}
        variables = {"params": params, "batch_stats": stats or start}
        return norm.apply(variables, rows, mask, train, mutable=["batch_stats"])

    def test_statistics_are_those_of_real_rows(self):
        real = self.ROWS[self.MASK]
        got, new = jax.jit(self.run, static_argnums=2)(self.ROWS, self.MASK, True)
        scaled = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-3)
        np.testing.assert_allclose(got[self.MASK], 1.5 * scaled + 0.5, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * real.mean(0), rtol=1e-5)
        expected = 0.9 + 0.1 * real.var(0)
        np.testing.assert_allclose(new["batch_stats"]["variance"], expected, rtol=1e-5)

    def test_padding_rows_change_nothing(self):
        shouting = np.where(self.MASK[:, None], self.ROWS, 1e6).astype(np.float32)
        apply = jax.jit(self.run, static_argnums=2)
        got, new = apply(shouting, self.MASK, True)
        expected, expected_new = apply(self.ROWS, self.MASK, True)
        np.testing.assert_array_equal(got[self.MASK], expected[self.MASK])
        jax.tree.map(np.testing.assert_array_equal, new, expected_new)

    def test_a_single_node_is_normalised_by_the_running_statistics(self):
        stats = {"mean": jnp.full(4, 2.0), "variance": jnp.full(4, 9.0)}
        apply = jax.jit(self.run, static_argnums=2)
        one, kept = apply(self.ROWS[:1], self.MASK[:1], False, stats)
        expected = 1.5 * (self.ROWS[:1] - 2.0) / np.sqrt(9.001) + 0.5
        np.testing.assert_allclose(one, expected, rtol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], stats)

    def test_devices_share_their_statistics(self):
        shards = self.ROWS.reshape(2, 3, 4), self.MASK.reshape(2, 3)
        mapped = jax.vmap(
            lambda rows, mask: self.run(rows, mask, True, axis="shards"), axis_name="shards"
        )
        got, new = jax.jit(mapped)(*shards)
        expected, expected_new = jax.jit(self.run, static_argnums=2)(self.ROWS, self.MASK, True)
        np.testing.assert_allclose(got.reshape(6, 4), expected, rtol=1e-5, atol=1e-5)
        for leaf, want in zip(jax.tree.leaves(new), jax.tree.leaves(expected_new), strict=True):
            np.testing.assert_allclose(leaf, np.stack([want, want]), rtol=1e-5)
