import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import InputError
from star_jax.train.optimizers import (
    OptimizerConfig,
    decayed,
    learning_rate,
    make_optimizer,
    warmup_steps,
)


@pytest.mark.parametrize(("batch", "steps"), [(3172, 30), (1586, 60), (6344, 15), (10**6, 1)])
def test_warm_up_is_inverse_to_the_batch(batch, steps):
    assert warmup_steps(OptimizerConfig(), batch, 10_000) == steps


def test_warm_up_takes_no_more_than_its_share_of_the_run():
    assert warmup_steps(OptimizerConfig(), 64, 200) == 20
    assert warmup_steps(OptimizerConfig(), 64, 5) == 1


def test_schedules():
    config = OptimizerConfig(learning_rate=0.2, final_fraction=0.1)
    rates = [learning_rate(config, i, num_steps=20, warmup=4) for i in range(20)]
    np.testing.assert_allclose(rates[:4], [0.05, 0.1, 0.15, 0.2])
    reference = optax.cosine_decay_schedule(0.2, 16, alpha=0.1)
    np.testing.assert_allclose(
        rates[4:], [float(np.asarray(reference(i))) for i in range(16)], rtol=1e-6
    )
    linear = OptimizerConfig(learning_rate=0.2, schedule="linear")
    assert learning_rate(linear, 12, num_steps=20, warmup=4) == pytest.approx(0.1)
    constant = OptimizerConfig(learning_rate=0.2, schedule="constant")
    assert learning_rate(constant, 19, num_steps=20, warmup=4) == 0.2


def test_equals_optax_adamw():
    params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"bias": jnp.ones((2,))}}
    ours = make_optimizer(OptimizerConfig(weight_decay=0.3, clip_norm=0.0))
    mask = {"a": {"kernel": True}, "b": {"bias": False}}
    theirs = optax.adamw(0.01, weight_decay=0.3, mask=mask)

    def run(optimizer, rate, params):
        state = optimizer.init(params)
        for i in range(3):
            grads = jax.tree.map(lambda p, i=i: jnp.cos(p * (i + 1)), params)
            updates, state = optimizer.update(grads, state, params)
            params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        return params

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        run(ours, -0.01, params),
        run(theirs, 1.0, params),
    )


def test_clips_the_norm_over_all_parameters():
    """Gradients of different sizes: Adam alone would not care about the scale of equal ones."""
    params = {"a": jnp.ones(3), "b": jnp.ones(4)}
    ours = make_optimizer(OptimizerConfig(weight_decay=0.0, clip_norm=1.0))
    theirs = optax.adam(0.01)
    state, expected_state = ours.init(params), theirs.init(params)
    for size in (10.0, 0.1):
        grads = jax.tree.map(lambda p, size=size: size * p, params)
        norm = size * 7**0.5
        clipped = jax.tree.map(lambda g, norm=norm: g / max(norm, 1.0), grads)
        got, state = ours.update(grads, state, params)
        expected, expected_state = theirs.update(clipped, expected_state)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(-0.01 * g, e, rtol=1e-5), got, expected)


def test_multipliers_of_no_parameter_are_refused():
    optimizer = make_optimizer(OptimizerConfig(rate_multipliers=(("scoer/.*", 5.0),)))
    params = {"head": {"kernel": jnp.ones(3)}}
    state = optimizer.init(params)
    with pytest.raises(InputError, match=r"'scoer/\.\*' matches none of .*: head/kernel"):
        optimizer.update(params, state, params)


def test_norms_and_biases_do_not_decay():
    tree = {
        "layers": {"attention_norm": {"weight": 0}, "mlp": {"kernel": 0, "bias": 0}},
        "LayerNorm": {"scale": 0, "weight": 0},
        "lora": {"a": 0},
    }
    got = decayed(tree, OptimizerConfig().no_decay)
    assert got["layers"]["mlp"] == {"kernel": True, "bias": False}
    assert not any(jax.tree.leaves([got["LayerNorm"], got["layers"]["attention_norm"]]))
    assert got["lora"]["a"]


def test_rate_multipliers_scale_the_update():
    params = {"head": {"kernel": jnp.ones(3)}, "tower": {"kernel": jnp.ones(3)}}
    config = OptimizerConfig(rate_multipliers=(("head/.*", 10.0),))
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    head, tower = jax.tree.leaves(updates)
    np.testing.assert_allclose(head, 10 * tower, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0.0, "learning_rate 0.0 must be > 0"),
        ("eps", 0.0, "eps 0.0 must be > 0"),
        ("rate_multipliers", (("a", -1.0),), "rate_multipliers 'a' has factor -1.0, needed >= 0"),
        ("final_fraction", 2.0, r"final_fraction 2.0 must be in \[0, 1\]"),
        ("max_warmup_fraction", -1.0, r"max_warmup_fraction -1.0 must be in \[0, 1\]"),
        ("no_decay", "(", "is no regular expression"),
    ],
)
def test_bad_values_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{field: value})
