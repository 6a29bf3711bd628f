import threading

import pytest

from star_jax.pipeline.ahead import ahead, behind

WAIT_S = 30.0


def test_items_come_in_order_and_are_made_before_they_are_asked_for():
    made = [threading.Event() for _ in range(5)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    with ahead(items(), 2) as several:
        taken = []
        for item in several:
            if item < 2:
                assert made[item + 2].wait(WAIT_S)  # In a thread: nobody asks meanwhile.
            taken.append(item)
    assert taken == list(range(5))


def test_no_more_are_made_than_asked_for():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    with ahead(items(), 2) as several:
        assert next(iter(several)) == 0
    assert len(made) <= 4  # One taken, two waiting, one in the maker's hand.
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_waiting_is_counted():
    asked = threading.Event()

    def items():
        asked.wait(0.2)
        yield 1

    with ahead(items(), 1) as several:
        assert list(several) == [1]
    assert 0.1 < several.waited_s < WAIT_S


def test_what_the_maker_raises_reaches_the_taker():
    def items():
        yield 1
        raise OSError("disk is gone")

    with ahead(items(), 1) as several:
        iterator = iter(several)
        assert next(iterator) == 1
        with pytest.raises(OSError, match="disk is gone"):
            next(iterator)


def test_results_are_stored_in_order_while_the_next_is_made():
    stored, may_store = [], threading.Event()

    def first():
        assert may_store.wait(WAIT_S)
        stored.append(1)

    with behind() as storing:
        storing(first)
        assert stored == []  # The call came back before it was stored.
        may_store.set()
        storing(lambda: stored.append(2))
    assert stored == [1, 2]


def test_what_storing_raises_reaches_the_giver():
    def failing():
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"), behind() as storing:
        storing(failing)
