"""All models together: what is said of pairs, of queries and of senders is the same."""

import numpy as np

from star_jax.pipeline.scored import Answer, Questions
from star_jax.pipeline.sender_ranking import SenderRanking
from star_jax.pipeline.stacked import STACKED, Asked, Warm, answer_of, teach
from star_jax.pipeline.tables.read import PairTable, Ranking
from star_jax.shapes import NO_TIME

SENDERS, RECEIVERS = 6, 5
WARM = Warm(np.arange(SENDERS) % 2 == 0, np.arange(RECEIVERS) > 2)


def all_pairs(rng):
    sender, receiver = (index.ravel() for index in np.indices((SENDERS, RECEIVERS)))
    size = len(sender)
    none = np.full(size, -1, np.int32)
    return PairTable(
        sender=sender.astype(np.int32),
        receiver=receiver.astype(np.int32),
        label=rng.integers(0, 2, size).astype(np.int8),
        negative=np.zeros(size, np.str_),
        t=np.full(size, NO_TIME),
        group=sender.astype(np.int32),
        sender_text=none,
        sender_resume=none,
        receiver_text=none,
        warm_sender=WARM.senders[sender],
        warm_receiver=WARM.receivers[receiver],
        true_logit=np.zeros(size, np.float32),
        slice=np.zeros(size, np.str_),
    )


def asked_about(senders, receivers):
    none = np.full(len(senders), -1, np.int32)
    return Ranking(
        sender=np.asarray(senders, np.int32),
        t=np.full(len(senders), NO_TIME),
        sender_text=none,
        sender_resume=none,
        relevant=[],
        excluded=[],
        candidates=np.asarray(receivers, np.int32),
        candidate_text=np.full(len(receivers), -1, np.int32),
    )


def test_grids_hold_what_their_pairs_give():
    rng = np.random.default_rng(0)
    ranking, senders = asked_about([4, 1, 2], [3, 0, 4, 1]), asked_about([0, 5], [2, 4, 0])
    chosen = [np.array([5]), np.array([0]), np.array([5])]
    of_senders = SenderRanking(
        senders, np.ones(2, np.int64), np.ones(2), chosen, [np.zeros(0, np.int64)] * 3
    )
    answers = {}
    for name in ("one", "other"):
        scores = rng.normal(size=(SENDERS, RECEIVERS))
        answers[name] = Answer(
            scores.ravel(),
            scores[np.ix_(ranking.sender, ranking.candidates)],
            scores[np.ix_(senders.sender, senders.candidates)],
        )
    asked = Asked(Questions(all_pairs(rng), ranking, of_senders), answers, WARM)
    taught = teach(asked, asked)
    found, pairs = taught.answer, taught.answer.pairs.reshape(SENDERS, RECEIVERS)
    assert np.ptp(pairs) > 0.1
    assert found.grid is not None
    assert found.turned is not None
    np.testing.assert_allclose(found.grid, pairs[np.ix_(ranking.sender, ranking.candidates)])
    np.testing.assert_allclose(found.turned, pairs[np.ix_(senders.sender, senders.candidates)])
    assert taught.senders.keys() == {"one", "other", STACKED}
    assert taught.senders[STACKED] == of_senders.fit(found.turned)
    silent = answers | {"other": answers["other"]._replace(grid=None)}
    again = answer_of(taught.stack, asked._replace(answers=silent))
    assert again.grid is None
    assert again.turned is not None
    np.testing.assert_array_equal(again.turned, found.turned)
