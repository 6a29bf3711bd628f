"""The pipelines themselves; the one place that imports Beam."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
    PipelineOptions,
)

from star_jax.config import InputError
from star_jax.pipeline.beam.engine import Each, Join, Split


class PieceError(Exception):
    """A piece of the work failed; says which, and why."""

    def __init__(self, what: str, error: Exception) -> None:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        super().__init__(f"{what}: {kind}{' '.join(str(error).split())}")


class _Step(beam.DoFn):
    """Something prepared once on every worker."""

    def __init__(self, what: str, prepare: Callable[[], Any]) -> None:
        self._what, self._prepare = what, prepare

    def setup(self) -> None:
        try:
            self._do = self._prepare()
        except Exception as error:
            raise PieceError(f"a worker for each {self._what}", error) from error


class _Each(_Step):
    def process(self, piece: Any) -> None:
        do: Each = self._do
        try:
            do(piece)
        except Exception as error:
            raise PieceError(f"{self._what} {piece}", error) from error


class _Split(_Step):
    def process(self, piece: Any) -> Iterator[tuple[str, Any]]:
        do: Split = self._do
        try:
            yield from do(piece)
        except Exception as error:
            raise PieceError(f"{self._what} {piece}", error) from error


class _Join(_Step):
    def process(self, part: tuple[str, Iterable[Any]]) -> None:
        do: Join = self._do
        name, rows = part
        try:
            do(name, rows)
        except Exception as error:
            raise PieceError(f"part {name}", error) from error


def run(flags: list[str], build: Callable[[Any], None]) -> None:
    """Runs a pipeline to its end.

    Raises:
      InputError: Beam does not understand the flags.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(flags)
            options.get_all_options()  # Else each is looked at when it is needed.
            pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError, SystemExit) as error:
        told = said.getvalue().strip().splitlines()[-1:] or [str(error)]
        raise InputError(f"beam {' '.join(flags)}: {told[0]}") from error
    with pipeline as begin:
        build(begin)


def for_each(begin: Any, what: str, pieces: Sequence[Any], prepare: Callable[[], Each]) -> None:
    """Adds a step that does every piece."""
    _ = _spread(begin, pieces) | "do" >> beam.ParDo(_Each(what, prepare))


def group(
    begin: Any,
    what: str,
    pieces: Sequence[Any],
    split: Callable[[], Split],
    join: Callable[[], Join],
) -> None:
    """Adds steps that split every piece, group and join."""
    _ = (
        _spread(begin, pieces)
        | "split" >> beam.ParDo(_Split(what, split)).with_output_types(tuple[str, Any])
        | "group" >> beam.GroupByKey()
        | "join" >> beam.ParDo(_Join(what, join))
    )


def _spread(begin: Any, pieces: Sequence[Any]) -> Any:
    """All pieces, on all workers."""
    return begin | "pieces" >> beam.Create(list(pieces)) | "spread" >> beam.Reshuffle()
