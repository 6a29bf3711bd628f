"""Progress of work that is short for most data: nothing is said unless it takes long."""

from star_jax.train.reporter import Progress


class Work:
    """Rate and remaining time, spoken at intervals; its end is for the caller to tell."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        """Starts the clock.

        Args:
          name: What is being done, for the log line.
          total: How many units there are.
          unit: What is counted, e.g. "pairs".
        """
        self._progress = Progress(name, float(total), unit)
        self._left = total

    def advance(self, units: int) -> None:
        """Counts units that were done."""
        self._left -= units
        if self._left > 0:
            self._progress.advance(float(units), float(units))
