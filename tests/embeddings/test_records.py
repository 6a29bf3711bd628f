import itertools

import numpy as np
import pytest

from star_jax.embeddings import records
from star_jax.embeddings.records import (
    NEVER_MS,
    DamagedRecordError,
    Record,
    content_key,
    decode,
    decode_row,
    encode,
    encode_row,
    name_in,
    replaces,
    row_key,
    row_prefix,
)
from star_jax.shapes import NO_TIME

VECTOR = np.array([1.0, -2.0, 0.5], np.float32)
# By hand: event time 7, not deleted, never expires; BLAKE2b of b2sum; layout 1, float32, 3 numbers.
GOLDEN = bytes.fromhex(
    "800000000000000700ffffffffffffff5ec752a9f334c178010000030276310000803f000000c00000003f"
)


def test_the_bytes_of_a_record_stay():
    assert encode(Record("v1", 7, VECTOR)) == GOLDEN
    found = decode(GOLDEN)
    assert found[:2] == ("v1", 7)
    assert found.expires_ms == NEVER_MS
    np.testing.assert_array_equal(found.vector, VECTOR)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("time", [NO_TIME, -1, 0, 2**63 - 1])
def test_all_kinds_come_back(dtype, time):
    record = Record("ab>cd/ef", time, np.arange(5).astype(dtype), 17)
    name, found = decode_row(encode_row("ä/1", record))
    assert (name, *found[:2], found.expires_ms) == ("ä/1", "ab>cd/ef", time, 17)
    assert found.vector is not None
    assert found.vector.dtype == dtype
    np.testing.assert_array_equal(found.vector, np.arange(5))


@pytest.mark.parametrize("at", range(len(GOLDEN)))
def test_a_flipped_bit_is_found_wherever_it_is(at):
    flipped = bytearray(GOLDEN)
    flipped[at] ^= 4
    with pytest.raises(DamagedRecordError):
        decode(bytes(flipped))


def test_what_is_cut_or_something_else_is_no_record():
    for content in (b"", GOLDEN[:20], GOLDEN[:-1], GOLDEN + b"\0", b"x" * 50):
        with pytest.raises(DamagedRecordError):
            decode(content)


def test_time_then_deletion_then_expiry_decide():
    """From what loses to what wins."""
    order = [
        Record("v", NO_TIME, VECTOR),
        Record("v", -5, VECTOR),
        Record("v", 5, VECTOR, 100),
        Record("v", 5, VECTOR, 200),
        Record("v", 5, VECTOR),
        Record("v", 5, None, 100),
        Record("v", 6, VECTOR, 100),
    ]
    for (i, old), (j, new) in itertools.product(enumerate(order), repeat=2):
        assert replaces(encode(new), encode(old)) == (j > i)


def test_equal_times_have_one_winner():
    """Whichever comes first."""
    a, b = (encode(Record("v", 5, VECTOR * scale)) for scale in (1, 2))
    assert replaces(a, b) != replaces(b, a)


def test_keys_have_one_reading():
    key = row_key("v1", "member", "a\0b")
    assert key == b"ev1\0member\0a\0b"
    assert name_in(key) == "a\0b"
    assert key.startswith(row_prefix("v1", "member"))
    assert not row_key("v1", "member2", "a").startswith(row_prefix("v1", "member"))
    assert content_key(bytes(16)) == b"c" + bytes(16)
    with pytest.raises(ValueError, match=r"has 600 bytes, needed at most 500 beside version v1"):
        row_key("v1", "member", "x" * 600)
    with pytest.raises(ValueError, match="may hold no NUL"):
        row_key("v\0", "member", "x")
    with pytest.raises(ValueError, match="a digest of 8 bytes, needed 16 to 64"):
        content_key(bytes(8))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("v", 0, np.zeros(3)), r"a vector of 3 float64, needed 1 to 65535 of float32"),
        (Record("v", 0, np.zeros(0, np.float32)), "a vector of 0 float32"),
        (Record("v" * 256, 0, VECTOR), "out of range"),
        (Record("v", 0, VECTOR, 0), "out of range"),
        (Record("v", 0, VECTOR, NEVER_MS + 1), "out of range"),
    ],
)
def test_what_does_not_fit_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        encode(record)


def test_expiry_is_in_the_future(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 10.0)
    assert records.expiry(2.5) == 12_500
    assert records.expiry(None) == NEVER_MS
    with pytest.raises(ValueError, match=r"ttl_s 0\.0, needed > 0"):
        records.expiry(0.0)
