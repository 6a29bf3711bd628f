"""What an import has to say about its input: problems that stop it, repairs, exclusions, notes."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from star_jax.config import InputError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one place.

    `kind` is a fixed word ("dangling id"), `where` a file or file:column, `examples` the first
    offending rows (counted from 1, without a CSV's header), `needed` what would be right.
    """

    kind: str
    where: str
    count: int
    examples: tuple[str, ...]
    needed: str

    def __str__(self) -> str:
        rows = f"{self.count} rows, first {', '.join(self.examples)}; " if self.examples else ""
        return f"{self.kind} in {self.where}: {rows}needed {self.needed}"


class InputProblemsError(InputError):
    """All problems of one import; the message is one line, the problems are in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = str(self.problems[0])
        else:
            short = ", ".join(f"{p.kind} in {p.where} ({p.count})" for p in self.problems)
            message = f"{len(self.problems)} kinds of problem, each listed above: {short}"
        super().__init__(message)


class Findings:
    """Collects everything worth saying; counts only, for it goes into the artefact."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self.problems: list[Problem] = []
        self._allowed = frozenset(allowed)
        self._counts: dict[str, dict[str, int]] = defaultdict(dict)
        self._notes: list[str] = []
        self._loud: set[str] = set()

    def problem(
        self, kind: str, where: str, needed: str, *, count: int = 1, examples: Sequence[str] = ()
    ) -> None:
        """Records a problem; one of an allowed kind is only counted."""
        if kind in self._allowed:
            self.count("allowed", f"{kind} in {where}", count)
        else:
            self.problems.append(Problem(kind, where, count, tuple(examples), needed))

    def count(self, group: str, name: str, count: int) -> None:
        """Adds to a count of the report.

        Args:
          group: "excluded", "fixed", "allowed", "short" or "unknown".
          name: What is counted, and where.
          count: How many.
        """
        if count:
            self._counts[group][name] = self._counts[group].get(name, 0) + count

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """What was counted, by group."""
        return {group: dict(counts) for group, counts in self._counts.items()}

    def note(self, text: str) -> None:
        """Records a sentence for the reader of the report."""
        self._notes.append(text)

    def warn(self, text: str) -> None:
        """As `note`, for what nobody should overlook."""
        self.note(text)
        self._loud.add(text)

    def stop_if_any(self) -> None:
        """Raises everything found so far.

        Raises:
          InputProblemsError: There was a problem.
        """
        if not self.problems:
            return
        if len(self.problems) > 1:
            for problem in self.problems:
                _LOG.error("%s", problem)
        raise InputProblemsError(self.problems)

    def report(self) -> dict[str, object]:
        """The counts and notes, for the manifest and the log."""
        for group, counts in self._counts.items():
            for name, count in counts.items():
                _LOG.info("%s: %s: %d", group, name, count)
        for note in self._notes:
            _LOG.log(logging.WARNING if note in self._loud else logging.INFO, "%s", note)
        return {
            **self.counts,
            "notes": list(self._notes),
        }
