import numpy as np
import pytest

from star_jax.evaluation.baselines import item_knn, mf_als, popularity, tfidf
from star_jax.evaluation.baselines.interactions import Interactions


@pytest.fixture
def interactions():
    rng = np.random.default_rng(0)
    return Interactions(rng.integers(0, 9, 60), rng.integers(0, 12, 60), 10, 14)


def dense(interactions):
    matrix = np.zeros((interactions.num_senders, interactions.num_receivers))
    matrix[interactions.sender, interactions.receiver] = 1
    return matrix


def every_pair():
    sender, receiver = np.meshgrid(np.arange(10), np.arange(14), indexing="ij")
    return sender.reshape(-1), receiver.reshape(-1)


def test_popularity_counts_every_interaction(interactions):
    model = popularity.fit(interactions)
    assert model.score(np.array([0, 5]), np.array([3, 13])).tolist() == [
        float((interactions.receiver == 3).sum()),
        0.0,
    ]


def test_item_knn_sums_cosines_over_the_history(interactions):
    matrix = dense(interactions)
    norms = np.linalg.norm(matrix, axis=0)
    cosine = (matrix.T @ matrix) / np.maximum(np.outer(norms, norms), 1e-12)
    np.fill_diagonal(cosine, 0.0)
    model = item_knn.fit(interactions)
    np.testing.assert_allclose(model.score(*every_pair()).reshape(10, 14), matrix @ cosine)


@pytest.mark.parametrize("num_factors", [2, 64])  # Fewer and more than most rows have links.
def test_als_rounds_reach_a_stationary_point(interactions, monkeypatch, num_factors):
    monkeypatch.setattr(mf_als, "NUM_FACTORS", num_factors)
    model = mf_als.fit(interactions, seed=0)
    matrix = dense(interactions)
    confidence = 1 + mf_als.CONFIDENCE * matrix
    for receiver in range(14):  # The last half-round solved for these, one by one in the paper.
        weighted = model.senders.T * confidence[:, receiver]
        expected = np.linalg.solve(
            weighted @ model.senders + mf_als.REGULARISATION * np.eye(num_factors),
            weighted @ matrix[:, receiver],
        )
        np.testing.assert_allclose(model.receivers[receiver], expected, atol=1e-8)
    scores = model.grid(np.arange(10), np.arange(14))
    assert scores[matrix > 0].mean() > scores[matrix == 0].mean() + 0.2


@pytest.mark.parametrize("fit", [popularity.fit, item_knn.fit, lambda i: mf_als.fit(i, seed=0)])
def test_grid_holds_the_scores_of_pairs(interactions, fit):
    model = fit(interactions)
    grid = model.grid(np.arange(10), np.arange(14))
    np.testing.assert_allclose(grid.reshape(-1), model.score(*every_pair()), atol=1e-12)


def test_tfidf_vectors_by_the_formula():
    texts = [
        "a rare welder",
        "welder needed",
        "welder and driver",
        "driver",
        "driver driver",
        "x y",
    ]
    fitted = tfidf.fit(texts)
    assert sorted(fitted.column) == ["driver", "welder"]  # In three documents, at most half.
    vector = fitted.vectors(["Welder, driver driver.", "nothing known"]).toarray()
    idf = np.log(7 / 4) + 1
    raw = np.array([(1 + np.log(2)) * idf, idf])
    columns = [fitted.column["driver"], fitted.column["welder"]]
    np.testing.assert_allclose(vector[0, columns], raw / np.linalg.norm(raw))
    assert not vector[1].any()


def test_words_of_any_script():
    assert tfidf.words("Ingénieur C++ / Düsseldorf, a b2") == ["ingénieur", "düsseldorf", "b2"]
    assert tfidf.words("инженер-сварщик") == ["инженер", "сварщик"]
    assert tfidf.words("软件工程师 Java") == ["软件", "件工", "工程", "程师", "java"]
