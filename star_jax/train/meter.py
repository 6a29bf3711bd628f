"""What a training run makes of its devices: rates, shares of the peak, memory."""

import logging
import re
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

_log = logging.getLogger(__name__)

_SHARE = "_share"
_MEMORY_S = 60.0  # Rates are averages over about this long.

# By data sheet; the first pattern found in the device kind decides.
_PEAK_FLOPS = (
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100|H200", 989e12),
    ("TPU v5 ?lite|TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
)


_NO_FIGURES: Mapping[str, float] = MappingProxyType({})


class Arithmetic(NamedTuple):
    """Floating-point operations of one step, on all devices together."""

    model: float  # What the mathematics of the real units needs.
    hardware: float  # What is computed: padding and recomputation too.


class Counts(NamedTuple):
    """Sizes of one host batch."""

    units: int  # What the rate counts: real tokens, pairs.
    slots: int  # The same with padding.
    arithmetic: Arithmetic | None = None  # None: nobody counts it.
    figures: Mapping[str, float] = _NO_FIGURES  # Whatever else is to be logged of it.
    seconds: Mapping[str, float] = _NO_FIGURES  # Of host threads, by stage, since the last batch.


class Meter:
    """Figures of about the last minute of training; what `pausing` spans does not count."""

    def __init__(self, unit: str, peak_flops: float | None) -> None:
        """Starts with nothing.

        Args:
          unit: What `Counts.units` counts.
          peak_flops: A second, of all devices together; None leaves MFU and HFU out.
        """
        self._unit, self._peak_flops = unit, peak_flops
        self._sums = {"units": 0.0, "model": 0.0, "hardware": 0.0, "waited": 0.0}
        self._marks: list[tuple[float, dict[str, float]]] = []  # (Time, sums so far).

    def advance(self, counts: Counts, waited_s: float) -> None:
        """Counts a step that just ended.

        Args:
          counts: Of its batch.
          waited_s: How long the loop waited for that batch.
        """
        now = time.monotonic()
        if self._marks:  # The first step compiles: time begins with its end.
            arithmetic = counts.arithmetic or Arithmetic(0.0, 0.0)
            step = {"units": counts.units, "waited": waited_s, **arithmetic._asdict()}
            step |= {f"{stage}{_SHARE}": seconds for stage, seconds in counts.seconds.items()}
            self._sums = self._sums | {n: self._sums.get(n, 0.0) + x for n, x in step.items()}
        self._marks.append((now, self._sums))
        while len(self._marks) > 2 and now - self._marks[0][0] > _MEMORY_S:
            self._marks.pop(0)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leaves out the time that is spent within."""
        begun = time.monotonic()
        yield
        away = time.monotonic() - begun
        self._marks = [(then + away, sums) for then, sums in self._marks]

    def figures(self) -> dict[str, float]:
        """`<unit>_per_s`, `data_wait` (share of the time), `mfu`, `hfu`, and the memory's peak.

        Where stages of the host are timed, `<stage>_share` is what one takes of all threads'
        time together in relation to the time that passes, and `compute_share` is what is left of
        that by waiting for data; they overlap. Rates are absent before the second step; MFU and
        HFU where peak or arithmetic is unknown.
        """
        return self._rates() | peak_memory()

    def _rates(self) -> dict[str, float]:
        if len(self._marks) < 2:
            return {}
        (then, before), (now, sums) = self._marks[0], self._marks[-1]
        seconds = max(now - then, 1e-9)
        rate = {name: (total - before.get(name, 0.0)) / seconds for name, total in sums.items()}
        found = {f"{self._unit}_per_s": rate["units"], "data_wait": rate["waited"]}
        if stages := {name: share for name, share in rate.items() if name.endswith(_SHARE)}:
            found |= stages | {f"compute{_SHARE}": max(1.0 - rate["waited"], 0.0)}
        if self._peak_flops is not None and rate["hardware"] > 0:
            found["mfu"] = rate["model"] / self._peak_flops
            found["hfu"] = rate["hardware"] / self._peak_flops
        return found


def peak_flops(devices: Iterable[Any], given: float | None) -> float | None:
    """FLOP/s that the devices can do together, or None when nobody knows.

    Args:
      devices: Of the mesh; all of one kind.
      given: Of one device, by the config; None: what its data sheet says of bf16.
    """
    kinds = [device.device_kind for device in devices]
    kind = kinds[0]
    if given is None:
        try:
            given = data_sheet_flops(kind)
        except KeyError:
            _log.info("no peak FLOP/s is known of %s, and none is given: no MFU, no HFU", kind)
            return None
    return len(kinds) * given


def data_sheet_flops(kind: str) -> float:
    """Dense bfloat16 operations a second of one device, by its `device_kind`.

    Raises:
      KeyError: Nobody knows.
    """
    known = [peak for pattern, peak in _PEAK_FLOPS if re.search(pattern, kind)]
    if not known:
        raise KeyError(kind)
    return known[0]


def peak_memory() -> dict[str, float]:
    """`peak_device_bytes` of the fullest device, or `peak_rss_bytes` where devices keep no count.

    The second is of this process, with all that its host side holds.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"peak_device_bytes": float(max(peaks))}
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_bytes": kibibytes * 1024.0}
