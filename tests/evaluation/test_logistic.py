import numpy as np
from scipy import optimize, special

from star_jax.evaluation.logistic import conditional_logit, logistic_regression


def test_the_regression_minimises_the_penalised_loss():
    rng = np.random.default_rng(1)
    design = np.column_stack([np.ones(300), rng.normal(size=(300, 3))])
    labels = rng.random(300) < special.expit(design @ [0.3, 1.0, -2.0, 0.0])
    weights = rng.uniform(0.5, 2.0, 300)

    def loss(fitted):
        signed = np.where(labels, design @ fitted, -design @ fitted)
        return -(weights @ special.log_expit(signed)) + 0.5 * 7.0 * (fitted[1:] ** 2).sum()

    expected = optimize.minimize(loss, np.zeros(4), method="BFGS", tol=1e-10).x
    found = logistic_regression(design, labels, weights, penalty=7.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_separable_labels_have_a_solution_where_weights_cost():
    design = np.column_stack([np.ones(40), np.linspace(-1, 1, 40)])
    found = logistic_regression(design, design[:, 1] > 0, np.ones(40), penalty=1.0)
    assert np.isfinite(found).all()
    assert found[1] > 1


def test_the_penalised_likelihood_of_choices_is_at_its_maximum():
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
