"""`star run` killed in the middle of one stage after the other.

killed_run.py CONFIG WORKDIR STAGE ...

Prints the exit code of each run. Every run is a process of its own, forked from this one, which
has imported all modules and started no device.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from star_jax.config import load_config
from star_jax.jobs.run import Stage, run_stages, stages


def _is_amid(stage: Stage, workdir: Path) -> bool:
    """Whether a stage has something to lose: a first file, or steps after a checkpoint of some."""
    if not stage.in_place:
        partial = workdir / f".{stage.output}.partial"
        return any(path.is_file() for path in partial.rglob("*"))
    saved = [path.name for path in (workdir / stage.output / "checkpoints").glob("step-*")]
    newest = max((int(name.removeprefix("step-")) for name in saved), default=0)
    log = workdir / stage.output / "metrics.jsonl"
    rows = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    whole = [json.loads(row) for row in rows if row.endswith("\n")]
    return newest > 0 and any(row["split"] == "train" and row["step"] > newest for row in whole)


def _dying(stage: Stage) -> Stage:
    def watch(workdir: Path) -> None:
        while not _is_amid(stage, workdir):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    def run(config: object, workdir: Path) -> None:
        threading.Thread(target=watch, args=(workdir,), daemon=True).start()
        stage.run(config, workdir)
        raise AssertionError(f"{stage.name} ended before it was killed")

    return stage._replace(run=run)


def main(config: str, workdir: str, *names: str) -> None:
    """Runs up to the middle of each stage; each run goes on from where the one before died."""
    plan = stages(load_config(Path(config)))
    for name in names:
        child = os.fork()
        if not child:
            run_stages([_dying(s) if s.name == name else s for s in plan], Path(workdir))
            os._exit(0)  # Nothing killed it.
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)} {name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
