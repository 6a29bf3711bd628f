"""What long measurements found, kept in a file: a run that is there is not done again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.train.plan import PlanConfig


class Record:
    """Of one data set, how long each row trains and what each of its seeds gave."""

    def __init__(self, path: Path, dataset: str) -> None:
        self._path = path
        self._all = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._rows = self._all.setdefault(dataset, {})

    def settled(self, name: str) -> dict[str, float] | None:
        """Fields of `train.plan.Plan`; None: the row has not begun."""
        return self._rows.get(name, {}).get("plan")

    def settle(self, name: str, plan: Path) -> None:
        """Keeps how long a row trains, from the file of a plan."""
        stored = json.loads(plan.read_text("utf-8"))
        kept = ("num_steps", "validate_every", "steps_per_epoch")
        self._rows.setdefault(name, {})["plan"] = {key: stored[key] for key in kept}
        self._write()

    def found(self, name: str, seed: int) -> Any:
        """What a run gave, with strings as keys; None: it is to be done."""
        return self._rows.get(name, {}).get("seeds", {}).get(str(seed))

    def keep(self, name: str, seed: int, found: Any) -> None:
        """Keeps what a run gave."""
        self._rows.setdefault(name, {}).setdefault("seeds", {})[str(seed)] = found
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._all, indent=1, sort_keys=True) + "\n", "utf-8")


def as_long_as(config: PlanConfig, settled: dict[str, float]) -> PlanConfig:
    """A plan with the steps and validations that another run had settled on."""
    return dataclasses.replace(
        config,
        num_steps=int(settled["num_steps"]),
        validate_epochs=settled["validate_every"] / settled["steps_per_epoch"],
        budget_s=None,
    )


def cells(found: Sequence[dict[str, float]], metrics: Sequence[str]) -> list[str]:
    """Mean and standard deviation (of a sample) over the runs of a row, by metric."""
    made = []
    for metric in metrics:
        values = [each[metric] for each in found if metric in each]
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        made.append(f"{np.mean(values):.4f}{spread}" if values else "-")
    return made
