import numpy as np
import pytest

from star_jax.shapes import NO_TIME, check_int32


def test_no_time_is_before_every_time():
    assert np.iinfo(np.int64).min == NO_TIME


@pytest.mark.parametrize("value", [-(2**31), 0, 2**31 - 1])
def test_int32_keeps_values(value):
    checked = check_int32("ids", np.array([value], np.int64))
    assert checked.dtype == np.int32
    assert checked[0] == value
    assert check_int32("ids", np.zeros(0, np.int64)).dtype == np.int32


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_int32_names_what_does_not_fit(value):
    with pytest.raises(ValueError, match=r"ids ranges over .*needed to fit int32"):
        check_int32("ids", np.array([0, value], np.int64))


def test_int32_refuses_floats():
    with pytest.raises(ValueError, match="ids has dtype float64, needed integers"):
        check_int32("ids", np.zeros(2))
