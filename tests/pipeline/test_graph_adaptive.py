"""Growing neighbourhoods: the rule, and batches that follow it."""

import pytest

from star_jax.graph.samplers.adaptive import AdaptiveConfig, advance, begin
from star_jax.pipeline.graph_adaptive import AdaptiveBatches, AdaptiveValidation


def sizes(scores, largest=100, **fields):
    config = AdaptiveConfig(**fields)
    state = begin(config, largest)
    found = []
    for score in scores:
        state = advance(config, state, score, largest)
        found.append(state.size)
    return found


def test_the_number_grows_by_the_stride_when_a_score_does_not_gain():
    assert sizes([0.5, 0.6, 0.601, 0.7, 0.7, 0.6]) == [2, 2, 22, 22, 42, 62]
    assert sizes([0.5] * 9) == [2, 22, 42, 62, 82, 100, 100, 100, 100]
    assert sizes([0.5, 0.5], largest=10) == [2, 10]
    assert sizes([0.5, 0.5], largest=1) == [1, 1]


def test_the_tolerance_shrinks_with_every_validation():
    steady = [0.5 + 0.015 * i for i in range(8)]
    assert sizes(steady, tolerance=0.02, decay=1.0)[-1] == 100
    # 0.02 * 0.9^2 = 0.0162, 0.02 * 0.9^3 = 0.0146: the fourth gain is enough.
    assert sizes(steady, tolerance=0.02, decay=0.9) == [2, 22, 42, 62, 62, 62, 62, 62]


def test_noise_is_waited_for():
    assert sizes([0.5, 0.4, 0.6, 0.5, 0.4, 0.3], patience=2, decay=1.0) == [2, 2, 2, 2, 22, 22]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 0}, "start is 0, needed at least 1"),
        ({"tolerance": -0.1}, "tolerance is -0.1, needed at least 0"),
        ({"decay": 0.0}, "decay is 0.0, needed above 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveConfig(**fields)


class Counting:
    """Batches (size, number) of which some are made ahead."""

    def __init__(self, size):
        self.size, self.next = size, 0

    def __next__(self):
        self.next += 1
        return self.size, self.next - 1

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


CONFIG = AdaptiveConfig(decay=1.0)


def test_the_examples_go_on_when_the_number_grows():
    batches = AdaptiveBatches(Counting, CONFIG, largest=100)
    found = []
    for score in (0.5, 0.6, 0.5, 0.5):
        found += [next(batches), next(batches)]
        batches.heed(score)
    assert found == [(2, i) for i in range(6)] + [(22, i) for i in range(6, 8)]
    assert batches.size == 42


def test_a_position_holds_the_controller():
    """Restored in the middle, it grows where it would have grown."""
    batches = AdaptiveBatches(Counting, CONFIG, largest=100)
    for score in (0.5, 0.5, 0.6):
        next(batches)
        batches.heed(score)
    position = batches.get_state()
    batches.heed(0.6)
    again = AdaptiveBatches(Counting, CONFIG, largest=100)
    again.set_state(position)
    assert (again.size, next(again)) == (22, (22, 3))
    again.heed(0.6)
    assert again.size == batches.size == 42
    assert next(again)[0] == 42


def test_the_score_with_the_sampled_neighbours_decides_and_both_are_logged():
    batches = AdaptiveBatches(Counting, CONFIG, largest=10)
    made = []

    def make(size):
        made.append(size)
        return lambda variables, step: {"score": variables["few"]}

    def full(variables, step):
        return {"score": variables["many"]}

    validation = AdaptiveValidation(full, make, batches)
    assert validation({"few": 0.5, "many": 0.7}, 0) == {"score": 0.7, "score@2": 0.5}
    assert validation({"few": 0.6, "many": 0.6}, 1) == {"score": 0.6, "score@2": 0.6}
    assert batches.size == 2
    assert validation({"few": 0.6, "many": 0.9}, 2) == {"score": 0.9, "score@2": 0.6}
    assert batches.size == 10
    assert validation({"few": 0.6, "many": 0.9}, 3) == {"score": 0.9, "score@10": 0.9}
    assert made == [2]
