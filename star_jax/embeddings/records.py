"""One embedding as bytes: what key-value stores hold under a key, and ArrayRecord in a record.

Layout 1. Numbers are big-endian, vectors little-endian:

    offset  bytes
    0       8      event time plus 2**63, unsigned
    8       1      1: deleted, there is no vector; else 0
    9       7      when it expires, in milliseconds since 1970; all ones: never
    16      8      BLAKE2b, 8 bytes long, of all other bytes in their order
    24      1      1: this layout
    25      1      type of the numbers: 0 float32, 1 float16, 2 int8, 3 uint8
    26      2      numbers in the vector
    28      1      bytes of the version
    29      ...    version in ASCII, then the vector to the end

The first 24 bytes decide which of two records of a key stays: the one whose bytes are greater. So
the last event time wins, at one time a deletion, then what lives longer, then the checksum: in
whatever order records arrive, and however often, the same one is left. A store need not read on
to know.
"""

import hashlib
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from star_jax.config import InputError
from star_jax.shapes import NO_TIME

ORDER_BYTES = 24
"""Of a record: they say which of two stays."""

NEVER_MS = (1 << 56) - 1
"""Expiry of what does not expire."""

KEY_BYTES = 511
"""A longer key does not fit LMDB."""

DTYPES: tuple[np.dtype, ...] = tuple(np.dtype(name) for name in ("<f4", "<f2", "i1", "u1"))

_LAYOUT = 1
_BIAS = 1 << 63
_HEADER = 29
_MOST = 0xFFFF
_ROW, _CONTENT = b"e", b"c"  # First bytes of the two kinds of keys.


class Record(NamedTuple):
    """What is known of a key."""

    version: str  # Of the embeddings, in ASCII.
    event_time: int  # The vector holds from then on; NO_TIME: always.
    vector: Shaped[np.ndarray, " E"] | None  # None: deleted.
    expires_ms: int = NEVER_MS  # Unix time.


class DamagedRecordError(ValueError):
    """Bytes that are no record, or not as they were written."""


def row_key(version: str, node_type: str, name: str) -> bytes:
    """Key of a node's embedding: `e`, version, NUL, node type, NUL, the node's own id.

    Raises:
      InputError: The key is too long, or a NUL in the version or node type would split it.
    """
    return row_prefix(version, node_type) + _checked(name.encode(), version, node_type)


def row_prefix(version: str, node_type: str) -> bytes:
    """What the keys of all nodes of a type begin with."""
    if "\0" in version + node_type:
        raise InputError(f"version {version!r} and node type {node_type!r} may hold no NUL")
    return b"\0".join((_ROW + version.encode(), node_type.encode(), b""))


def name_in(key: bytes) -> str:
    """The node's own id in a key of `row_key`."""
    return key.split(b"\0", 2)[2].decode()


def content_key(digest: bytes) -> bytes:
    """Key of what was computed from content, whoever asks for it: `c` and the content's digest."""
    if not 16 <= len(digest) <= 64:
        raise ValueError(f"a digest of {len(digest)} bytes, needed 16 to 64")
    return _CONTENT + digest


def checked_key(key: bytes) -> bytes:
    """A key that every store can hold.

    Raises:
      ValueError: It is empty or too long.
    """
    if not 0 < len(key) <= KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes, needed 1 to {KEY_BYTES}")
    return key


def encode(record: Record) -> bytes:
    """The bytes of a record.

    Raises:
      ValueError: It does not fit the layout.
    """
    version, vector = record.version.encode("ascii"), record.vector
    if vector is None:
        kind, numbers = 0, np.zeros(0, np.float32)
    else:
        numbers = np.ascontiguousarray(vector, vector.dtype.newbyteorder("<"))
        if numbers.dtype not in DTYPES or not 0 < numbers.size <= _MOST:
            raise ValueError(
                f"a vector of {numbers.size} {numbers.dtype}, needed 1 to {_MOST} of "
                f"{', '.join(dtype.name for dtype in DTYPES)}"
            )
        kind = DTYPES.index(numbers.dtype)
    if len(version) > 255 or not 0 < record.expires_ms <= NEVER_MS:
        raise ValueError(f"version {record.version!r}, expiry {record.expires_ms}: out of range")
    order = (record.event_time + _BIAS).to_bytes(8, "big")
    order += (((vector is None) << 56) | record.expires_ms).to_bytes(8, "big")
    head = bytes((_LAYOUT, kind)) + numbers.size.to_bytes(2, "big") + bytes((len(version),))
    rest = head + version + numbers.tobytes()
    return order + _checksum(order, rest) + rest


def decode(content: bytes) -> Record:
    """The record of these bytes; its vector is a view of them.

    Raises:
      DamagedRecordError: They are not what `encode` gives.
    """
    if len(content) < _HEADER or content[24] != _LAYOUT or content[25] >= len(DTYPES):
        raise DamagedRecordError(f"{len(content)} bytes that are no record of layout {_LAYOUT}")
    if _checksum(content[:16], content[ORDER_BYTES:]) != content[16:ORDER_BYTES]:
        raise DamagedRecordError("a record does not have the checksum it was written with")
    start = _HEADER + content[28]
    vector = np.frombuffer(content, DTYPES[content[25]], offset=start)
    deleted = bool(content[8])
    return Record(
        version=content[_HEADER:start].decode("ascii"),
        event_time=int.from_bytes(content[:8], "big") - _BIAS,
        vector=None if deleted else vector,
        expires_ms=expires_ms(content),
    )


def expires_ms(content: bytes) -> int:
    """When encoded bytes expire; of a record's head alone, too."""
    return int.from_bytes(content[9:16], "big")


def replaces(new: bytes, old: bytes) -> bool:
    """Whether an encoded record takes the place of another one of its key."""
    return new[:ORDER_BYTES] > old[:ORDER_BYTES]


def expiry(ttl_s: float | None) -> int:
    """The `expires_ms` of what is written now; None: never.

    Raises:
      ValueError: It would be gone at once.
    """
    if ttl_s is None:
        return NEVER_MS
    if not ttl_s > 0:
        raise ValueError(f"ttl_s {ttl_s}, needed > 0")
    return int((time.time() + ttl_s) * 1000)


def encode_row(name: str, record: Record) -> bytes:
    """A record that says whose it is: bytes of the id as two bytes, the id, `encode`."""
    own = name.encode()
    return len(own).to_bytes(2, "big") + own + encode(record)


def decode_row(content: bytes) -> tuple[str, Record]:
    """What `encode_row` was given."""
    start = 2 + int.from_bytes(content[:2], "big")
    return content[2:start].decode(), decode(content[start:])


def shown_time(event_time: int) -> int | None:
    """The time for those who know no NO_TIME."""
    return None if event_time == NO_TIME else event_time


def _checked(name: bytes, version: str, node_type: str) -> bytes:
    room = KEY_BYTES - len(row_prefix(version, node_type))
    if len(name) > room:
        raise InputError(
            f"id {name[:40]!r}... has {len(name)} bytes, needed at most {room} beside version "
            f"{version} and node type {node_type}"
        )
    return name


def _checksum(order: bytes, rest: bytes) -> bytes:
    return hashlib.blake2b(order[:16] + rest, digest_size=8).digest()
