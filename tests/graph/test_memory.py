"""Memory that is taken over when, and only when, nobody refers to it."""

import gc
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from star_jax.graph.samplers.memory import Pool

SHAPE = (1 << 10, 1 << 6)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int64])
def test_memory_that_nobody_refers_to_is_taken_over(dtype):
    pool = Pool()
    first = pool.zeros(SHAPE, dtype)
    assert (first.shape, first.dtype) == (SHAPE, dtype)
    assert not first.any()
    first[:] = 1
    where = address(first)
    assert where % 64 == 0
    del first
    second = pool.zeros(SHAPE, dtype)
    assert address(second) == where
    assert not second.any()


def test_a_view_keeps_the_memory():
    pool = Pool()
    first = pool.zeros(SHAPE, np.int32)
    view = first[3:, ::2].T
    del first
    other = pool.empty(SHAPE, np.int32)
    other[:] = 7
    assert not view.any()
    del view
    assert address(pool.empty(SHAPE, np.int32)) != address(other)


def test_an_array_of_jax_keeps_the_memory():
    pool = Pool()
    on_device = [jax.device_put(pool.zeros(SHAPE, np.float32)) for _ in range(3)]
    jax.block_until_ready(on_device)
    gc.collect()
    for _ in range(3):
        pool.empty(SHAPE, np.float32).fill(1)
    assert not any(np.asarray(array).any() for array in on_device)


def test_free_memory_stays_below_what_was_held_at_one_time():
    pool = Pool()
    held = [pool.empty((1 << 18,), np.uint8) for _ in range(4)]
    most = pool.num_bytes
    del held
    for size in (1 << 17, 1 << 19, 300_000, 1 << 18):
        assert pool.zeros((size,), np.uint8).size == size
        assert pool.num_bytes <= most


def test_threads_never_share_memory():
    pool = Pool()

    def work(number):
        for _ in range(200):
            array = pool.empty(SHAPE, np.int32)
            array.fill(number)
            assert (array == number).all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
