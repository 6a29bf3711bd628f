"""What a run says while it works: metrics as JSON lines and TensorBoard, progress in the log."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star_jax import artefacts

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_SPEAK_EVERY_S = 10.0
_MEMORY_S = 60.0  # The rate is an average over about this long.


class Progress:
    """Rate and remaining time of a long piece of work, spoken at intervals."""

    def __init__(self, name: str, total: float, unit: str) -> None:
        """Starts the clock.

        Args:
          name: What is being done, for the log line.
          total: How much work there is, in the same measure as `advance` counts it.
          unit: What the spoken rate counts, e.g. "tokens".
        """
        self._name, self._total, self._unit = name, total, unit
        self._done = self._paused_s = 0.0
        # (Time, time without pauses, work done, units done).
        self._marks = [(time.monotonic(), time.monotonic(), 0.0, 0.0)]
        self._spoken = self._marks[0][0]

    def advance(self, work: float, units: float, *, note: str = "") -> None:
        """Counts work that was done; speaks when the last line is some seconds old."""
        self._done += work
        now = time.monotonic()
        self._marks.append((now, now - self._paused_s, self._done, self._marks[-1][3] + units))
        while len(self._marks) > 2 and now - self._marks[0][0] > _MEMORY_S:
            self._marks.pop(0)
        if now - self._spoken >= _SPEAK_EVERY_S or self._done >= self._total:
            self._spoken = now
            _log.info("%s", self.line(note))

    def skip(self, work: float) -> None:
        """Counts work that an earlier run did; it changes no rate."""
        self._done += work
        now = time.monotonic()
        self._marks = [(now, now - self._paused_s, self._done, 0.0)]

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done within does not slow the rate, but does the remaining time."""
        begun = time.monotonic()
        yield
        self._paused_s += time.monotonic() - begun

    @property
    def rate(self) -> float:
        """Units a second."""
        return self._grown(3) / max(self._grown(1), 1e-9)

    @property
    def left_s(self) -> float:
        """Remaining time; infinite while nothing has been done."""
        work_rate = self._grown(2) / max(self._grown(0), 1e-9)
        return (self._total - self._done) / work_rate if work_rate > 0 else math.inf

    def line(self, note: str) -> str:
        """The progress in one line."""
        part = 100.0 * self._done / max(self._total, 1e-9)
        parts = [f"{self._name} {part:.0f} %", f"{self.rate:,.0f} {self._unit}/s"]
        return ", ".join([*parts, f"ETA {clock(self.left_s)}", *([note] if note else [])])

    def _grown(self, column: int) -> float:
        return self._marks[-1][column] - self._marks[0][column]


class Reporter:
    """Metrics of one run; a resumed run goes on in the same files."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        """Opens a folder.

        Args:
          folder: Of the training.
          writes: Of several processes the first alone does.
        """
        self.folder, self._writes = folder, writes
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        self._board: SummaryWriter | None = None
        self._start = time.monotonic()
        self._earlier_s = 0.0

    def resume(self, step: int) -> None:
        """Forgets what was reported after `step`: it will be computed again."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _complete(line) and json.loads(line)["step"] <= step]
        self._earlier_s = json.loads(kept[-1])["time_s"] if kept else 0.0
        if not self._writes:
            return
        artefacts.write_text(self._path, "".join(f"{line}\n" for line in kept))
        from tensorboardX import SummaryWriter  # It looks for torch, which no command waits for.

        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step.

        Args:
          step: Updates done.
          split: "train" or "val".
          metrics: Finite or not; float32 values are written exactly.
        """
        if not self._writes:
            return
        values = {name: float(np.float64(value)) for name, value in metrics.items()}
        row = {"step": step, "split": split, "time_s": round(self.seconds, 3)} | values
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is None:
            raise RuntimeError("Reporter.log before Reporter.resume, needed resume(0) to start")
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    @property
    def seconds(self) -> float:
        """Time of this run, earlier parts included."""
        return self._earlier_s + time.monotonic() - self._start

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._board is not None:
            self._board.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _complete(line: str) -> bool:
    """A killed run may leave half a line at the end."""
    return line.endswith("}")
