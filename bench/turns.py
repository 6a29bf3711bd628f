"""Processes that hold a side of a comparison each, and measure when it is their turn.

Used from several interpreters, so it needs the standard library alone.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Answer = dict[str, Any]


class Side:
    """A process that is waiting for its turn; leave its `with` block to end it."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Starts the process, which has to call `take_turns`.

        Args:
          name: For messages.
          command: Program and arguments.
        """
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)  # Closes both pipes, then waits.

    def ask(self, what: str) -> Answer:
        """Lets the side do what its function of that name does, and waits for the result.

        Raises:
          RuntimeError: The process ended; what it said is on its standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        raise RuntimeError(f"{self.name} ended with code {self._process.wait()} at {what!r}")


def take_turns(functions: Mapping[str, Callable[[], Answer]]) -> None:
    """Answers what the starting process asks for, until it closes the pipe."""
    for line in sys.stdin:
        print(json.dumps(functions[line.strip()]()), flush=True)
