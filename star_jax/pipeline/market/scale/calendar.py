"""Which jobs are open on a day: known from their numbers, with a table per day and age alone.

Jobs are numbered by the day they are posted and, within it, by how long they stay open. Those that
are open after some days are then the last ones of their day.
"""

import numpy as np
from jaxtyping import Float64, Int
from scipy.special import ndtr, ndtri

from star_jax.config import InputError
from star_jax.pipeline.market.scale.draws import below
from star_jax.pipeline.market.world import NUM_DAYS

_FIRST, _LAST = -30, NUM_DAYS - 2  # Days on which jobs are posted.
_NUM_POSTING = _LAST - _FIRST + 1
_MEDIAN_DAYS, _SPREAD = 30.0, 0.7  # Of how long a job is open, which is log-normal.


class JobCalendar:
    """Days and draws of jobs."""

    def __init__(self, num_jobs: int) -> None:
        if num_jobs < 2 * _NUM_POSTING:
            raise InputError(
                f"a streamed market has {num_jobs} jobs, needed {2 * _NUM_POSTING}, two for every "
                "day: take more members"
            )
        self._starts = np.arange(_NUM_POSTING + 1, dtype=np.int64) * num_jobs // _NUM_POSTING
        ages = np.arange(_NUM_POSTING + 1)
        whole = np.log(np.maximum(ages - 1.0, 1e-9))  # A started day counts as a whole one.
        self._closed = ndtr((whole - np.log(_MEDIAN_DAYS)) / _SPREAD)
        """Share of jobs that are no more open so many days later."""
        size = np.int64(num_jobs // _NUM_POSTING)  # Of a day; some days have one more.
        num_open = size - np.minimum(_first_open(self._closed, size), size)
        self._upto = np.cumsum([0, *num_open])

    def days(
        self, job: Int[np.ndarray, " N"]
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The first and the last day on which jobs are open."""
        posted = np.searchsorted(self._starts, job, side="right") - 1
        size = self._starts[posted + 1] - self._starts[posted]
        place = (job - self._starts[posted] + 0.5) / size
        length = np.ceil(_MEDIAN_DAYS * np.exp(_SPREAD * ndtri(place))).astype(np.int64)
        return posted + _FIRST, posted + _FIRST + length

    def open_on(
        self,
        day: Int[np.ndarray, " N"],
        which_age: Float64[np.ndarray, " N"],
        which_job: Float64[np.ndarray, " N"],
    ) -> Int[np.ndarray, " N"]:
        """Jobs drawn evenly from those that are open on a day.

        Args:
          day: From 0 on.
          which_age: In [0, 1); says how long before it was posted.
          which_job: In [0, 1); says which of that day's.
        """
        low, high = self._upto[np.maximum(day - _LAST, 0)], self._upto[day - _FIRST + 1]
        age = np.searchsorted(self._upto, low + which_age * (high - low), side="right") - 1
        posted = np.clip(day - age - _FIRST, 0, _NUM_POSTING - 1)
        size = self._starts[posted + 1] - self._starts[posted]
        first = _first_open(self._closed[day - _FIRST - posted], size)
        return self._starts[posted] + first + below(which_job, size - first)


def _first_open(
    closed: Float64[np.ndarray, " N"], size: Int[np.ndarray, "*_"] | np.int64
) -> Int[np.ndarray, " N"]:
    """Of so many jobs of a day, the first whose time is not over."""
    return np.maximum(np.floor(closed * size - 0.5) + 1, 0).astype(np.int64)
