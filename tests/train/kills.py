"""A training that is killed again and again, by SIGKILL at random points.

PYTHONPATH=. python tests/train/kills.py WORKDIR [--kills 50] [--seed 0]

It saves after every step. After every kill, all that looks like a checkpoint must verify, and the
newest one may not go back. Prints a line per kill; at the end, the state must be that of a run that
nobody killed. Every run is a process of its own, forked from this one, which starts no device.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from star_jax import artefacts
from tests.train import regression, stored

MOST_STEPS = 6  # That are waited for before a kill, and two more while it comes.
AT_START = 0.3  # Share of kills before the first step or soon after.
POLL_S = 0.0005


class Seen(NamedTuple):
    """One kill."""

    before: int  # Newest checkpoint's step when the run began; -1: there was none.
    resumed: int  # Where it went on; -1: nowhere.
    seen: int  # Newest checkpoint while it ran.
    after: int  # Newest one when it was dead.
    amid: str
    verified: int  # Checkpoints left, each of them whole.

    @property
    def lost(self) -> int:
        """Steps that were saved and are gone, or not gone on from."""
        gone = max(self.seen, self.before) - self.after
        return max(gone, 0) + (self.resumed not in (-1, self.before))


class Noting(regression.Batches):
    """Notes where a run goes on."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def set_state(self, state):
        super().set_state(state)
        self.path.write_text(str(state["position"]), encoding="utf-8")


def forked(work: Callable[[], object]) -> int:
    """Starts a process that does the work and ends well."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return child


def ended(child: int) -> int:
    """Waits for a process; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest(folder: Path) -> int:
    """Step of the newest checkpoint, -1 where there is none."""
    names = [path.name for path in (folder / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def watch(folder: Path, before: int, rng: random.Random) -> int:
    """Waits for the moment to kill; returns the newest step seen."""
    at_start, steps = rng.random() < AT_START, rng.randint(1, MOST_STEPS)
    seen, last, took = before, time.monotonic(), 0.5
    until = last + (rng.random() if at_start else 1e9)
    while time.monotonic() < until:
        now = newest(folder)
        if now > seen:
            seen, took, last = now, time.monotonic() - last, time.monotonic()
            if seen >= before + steps and not at_start:
                until = last + took * rng.random()
        time.sleep(POLL_S)
    return seen


def kill_one(folder: Path, job: regression.Job, rng: random.Random) -> Seen:
    """Starts the training, kills it, and looks at what it left."""
    note = folder / "resumed"
    note.unlink(missing_ok=True)
    before = newest(folder)
    child = forked(lambda: regression.run(folder, job, batches=Noting(note), checkpoint_s=0.0))
    seen = watch(folder, before, rng)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL, "it ended before it was killed"
    left = sorted((folder / "checkpoints").glob("step-*"))
    for path in left:
        artefacts.verify(path)
    resumed = int(note.read_text(encoding="utf-8") or -1) if note.is_file() else -1
    after = newest(folder)
    began = resumed >= 0 or before < 0
    return Seen(before, resumed, seen, after, amid(folder, before, after, began), len(left))


def amid(folder: Path, before: int, after: int, began: bool) -> str:
    """What the run was doing; one that has not begun has not swept what an earlier one left."""
    if not began:
        return "its start"
    hidden = [path.name for path in (folder / "checkpoints").glob(".step-*")]
    if any(name.endswith(".partial") for name in hidden):
        return "a save"
    if hidden:
        return "a removal"
    return "a step" if after > before else "its start"


def main(workdir: Path, kills: int, seed: int) -> bool:
    """Prints what it saw; returns whether nothing was lost and the end is the same."""
    rng, killed, whole = random.Random(seed), workdir / "killed", workdir / "whole"
    job = regression.Job(num_steps=(MOST_STEPS + 2) * (kills + 1))
    killed.mkdir(parents=True)
    say("kill  began  resumed  committed  amid       verified  lost")
    lost = 0
    for number in range(1, kills + 1):
        row = kill_one(killed, job, rng)
        lost += row.lost
        began, resumed, committed = (
            "-" if step < 0 else step for step in (row.before, row.resumed, row.after)
        )
        say(
            f"{number:4}  {began:>5}  {resumed:>7}  {committed:>9}  "
            f"{row.amid:<9}  {row.verified:8}  {row.lost:4}"
        )
    for folder in (killed, whole):
        assert ended(forked(lambda folder=folder: finish(folder, job))) == 0
    digests = [(folder / "digest").read_text(encoding="utf-8") for folder in (killed, whole)]
    equal = digests[0] == digests[1]
    say(f"{kills} kills, {lost} lost steps, final state of step {job.num_steps} equal: {equal}")
    return equal and not lost


def finish(folder: Path, job: regression.Job) -> None:
    """Trains to the end, and writes the digest of the last checkpoint."""
    regression.run(folder, job)
    digest = stored.digest(stored.newest(folder / "checkpoints"))
    (folder / "digest").write_text(digest, encoding="utf-8")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(not main(arguments.workdir, arguments.kills, arguments.seed))
