import numpy as np
from scipy import optimize, special

from star_jax.evaluation.conditional_logit import conditional_logit


def test_the_penalised_likelihood_is_at_its_maximum():
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(30, 8)), rng.normal(size=(1, 8))
    shown = rng.random((30, 8)) < 0.7
    chosen = [rng.choice(8, rng.integers(1, 3), replace=False) for _ in range(30)]
    for row, taken in enumerate(chosen):
        shown[row, taken] = True

    def loss(weights):
        utility = weights[0] * own + weights[1] * shared
        total = special.logsumexp(np.where(shown, utility, -np.inf), axis=1)
        likely = sum((utility[row, c] - total[row]).sum() for row, c in enumerate(chosen))
        return 0.5 * (weights**2).sum() - likely

    expected = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
    np.testing.assert_allclose(conditional_logit([own, shared], chosen, shown), expected, atol=1e-5)


def test_what_all_candidates_share_weighs_nothing():
    rng = np.random.default_rng(1)
    own = rng.normal(size=(20, 5))
    chosen = [own[row].argsort()[-1:] for row in range(20)]
    constant = np.full((1, 5), 7.0)
    found = conditional_logit([own, constant], chosen, np.ones((20, 5), bool))
    assert abs(found[1]) < 1e-9
    assert found[0] > 1
