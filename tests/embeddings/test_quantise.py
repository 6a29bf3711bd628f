import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.quantise import (
    PRECISIONS,
    check_ranges,
    code_dtype,
    dequantise,
    measure_ranges,
    num_codes,
    quantise,
)

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(200, 20)).astype(np.float32)
RANGES = np.stack([VECTORS.min(axis=0), VECTORS.max(axis=0)])


def by_definition(vector, precision, ranges):
    """One vector at a time, as sentence-transformers' `quantize_embeddings` says."""
    if precision in ("int8", "uint8"):
        starts, steps = ranges[0], (ranges[1] - ranges[0]) / 255
        shifted = (vector - starts) / steps - (128 if precision == "int8" else 0)
        return [int(value) for value in shifted]  # `int` truncates as a cast does.
    bits = "".join("1" if value > 0 else "0" for value in vector)
    bits += "0" * (-len(bits) % 8)
    found = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    return [byte - 128 for byte in found] if precision == "binary" else found


@pytest.mark.parametrize("precision", PRECISIONS[3:])
def test_codes_are_those_of_the_definition(precision):
    codes = quantise(VECTORS, precision, measure_ranges(VECTORS))
    assert codes.dtype == code_dtype(precision)
    assert codes.shape == (200, num_codes(precision, 20))
    expected = [by_definition(vector, precision, RANGES) for vector in VECTORS]
    np.testing.assert_array_equal(codes, expected)


def test_float32_is_left_alone_and_float16_is_rounded():
    np.testing.assert_array_equal(quantise(VECTORS, "float32", None), VECTORS)
    half = quantise(VECTORS, "float16", None)
    assert half.dtype == code_dtype("float16")
    np.testing.assert_array_equal(half, VECTORS.astype(np.float16))
    np.testing.assert_array_equal(dequantise(half, "float16", None), half.astype(np.float32))


@pytest.mark.parametrize(("precision", "steps"), [("int8", 1.0), ("uint8", 0.5)])
def test_dequantised_vectors_are_near(precision, steps):
    got = dequantise(quantise(VECTORS, precision, RANGES), precision, RANGES)
    assert got.dtype == np.float32
    step = (RANGES[1] - RANGES[0]) / 255
    off = np.abs(got - VECTORS) / step
    assert off.max() <= steps + 1e-3
    assert off.mean() < 0.3  # A uniform error of half a step on each side.
    assert (got.min(axis=0) >= RANGES[0] - 1e-5).all()
    assert (got.max(axis=0) <= RANGES[1] + 1e-5).all()


@pytest.mark.parametrize(("precision", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_what_is_out_of_range_stays_at_the_end(precision, low, high):
    codes = quantise(np.stack([RANGES[0] - 5, RANGES[1] + 5]), precision, RANGES)
    np.testing.assert_array_equal(codes, np.stack([np.full(20, low), np.full(20, high)]))


def test_a_dimension_of_one_value_comes_back():
    vectors = np.array([[0.25, 1.0], [0.25, 3.0]], np.float32)
    ranges = measure_ranges(vectors)
    for precision in ("int8", "uint8"):
        codes = quantise(vectors, precision, ranges)
        got = dequantise(codes, precision, ranges)
        np.testing.assert_array_equal(got[:, 0], vectors[:, 0])
        np.testing.assert_allclose(got[:, 1], vectors[:, 1], atol=2 / 255)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="precision int8 needs the ranges"):
        quantise(VECTORS, "int8", None)
    with pytest.raises(ValueError, match="precision binary is not one of"):
        dequantise(quantise(VECTORS, "binary", None), "binary", RANGES)
    with pytest.raises(
        InputError, match=r"r\.npy has shape \(2, 20\) of float32, needed \(2, 21\)"
    ):
        check_ranges(RANGES, 21, "r.npy")
    with pytest.raises(InputError, match=r"r\.npy has a least value above the greatest"):
        check_ranges(RANGES[::-1], 20, "r.npy")
