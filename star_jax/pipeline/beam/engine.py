"""Pieces of a job on the workers of an Apache Beam runner; the results are files.

A job that takes `--beam` plans its work as pieces, has the runner do those whose files are not
there yet, and puts the files together itself, by the code that it runs without Beam: what comes
out is the same to the byte. The options are those of a Beam pipeline, without their dashes:

    --beam runner=FnApiRunner direct_num_workers=8 direct_running_mode=multi_processing
    --beam runner=FlinkRunner flink_master=http://HOST:8081 parallelism=64
        environment_type=DOCKER environment_config=IMAGE
    --beam runner=SparkRunner spark_submit_uber_jar spark_rest_url=http://HOST:6066
        spark_master_url=spark://HOST:7077 environment_type=DOCKER environment_config=IMAGE
    --beam runner=DataflowRunner project=P region=R temp_location=gs://BUCKET/tmp
        sdk_container_image=IMAGE max_num_workers=64

Workers read and write the files of the working directory: on a cluster it lies in a file system
that all of them see under the same path (NFS, Lustre, Filestore), and so do the tables and the
base of the text model; IMAGE, or each machine, has star_jax of the same version with the extra
`beam`. The first line runs on one machine, in processes of their own; no other has been tried.
Worker processes of one machine share its devices: one per machine is enough where there is an
accelerator. The runner is always named: the one that Beam would choose downloads another.
For Flink and Spark, Beam needs Java and a jar of its own, which it fetches unless
`flink_job_server_jar` or `spark_job_server_jar` says where one is; for Dataflow it needs
`apache_beam[gcp]`. `default_sdk_harness_log_level=ERROR` quietens the workers.

A piece that fails ends the pipeline with its name. The same command goes on with what is missing.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from star_jax.config import InputError

_RUNNER = re.compile(r"runner=.+")
_FAILED = re.compile(r"PieceError: (.*?)(?: \[while running .*)?$", re.MULTILINE)

Each = Callable[[Any], None]
"""Does a piece: writes its file whole, or nothing."""
Split = Callable[[Any], Iterable[tuple[str, Any]]]
"""Reads a piece, and says which part each of its rows belongs to."""
Join = Callable[[str, Iterable[Any]], None]
"""Does a part, given its name and all that was split off for it."""


def check_options(options: Sequence[str]) -> None:
    """Checks what a config says of a pipeline.

    Raises:
      ValueError: There are options and no runner, or one is not written as it must be.
    """
    for option in options:
        if option.startswith("-") or not option:
            raise ValueError(f"beam {option!r} must be name=value, without dashes")
    if options and not any(map(_RUNNER.fullmatch, options)):
        raise ValueError(
            f"beam {' '.join(options)} names no runner, needed one such as runner=FnApiRunner"
        )


def check_installed(options: Sequence[str]) -> None:
    """Checks that there is a Beam for the options, if there are options.

    Raises:
      InputError: It is not installed.
    """
    if options:
        _steps()


def for_each(
    options: Sequence[str], what: str, pieces: Sequence[Any], prepare: Callable[[], Each]
) -> None:
    """Does all pieces, in whatever order and wherever.

    Args:
      options: Of the pipeline.
      what: A piece is, for messages.
      pieces: Small things with a name of their own.
      prepare: Makes what does a piece, once on every worker.

    Raises:
      InputError: Beam is missing, or a piece failed.
    """
    if pieces:
        steps = _steps()
        _run(options, lambda begin: steps.for_each(begin, what, pieces, prepare))


def group(
    options: Sequence[str],
    what: str,
    pieces: Sequence[Any],
    split: Callable[[], Split],
    join: Callable[[], Join],
) -> None:
    """Splits all pieces, and joins what belongs to the same part.

    Args:
      options: Of the pipeline.
      what: A piece is, for messages.
      pieces: Small things with a name of their own.
      split: Makes what splits a piece, once on every worker.
      join: Makes what joins a part, once on every worker.

    Raises:
      InputError: Beam is missing, or a piece or a part failed.
    """
    if pieces:
        steps = _steps()
        _run(options, lambda begin: steps.group(begin, what, pieces, split, join))


def _steps() -> ModuleType:
    """The module that needs Beam.

    Raises:
      InputError: It is not installed.
    """
    try:
        return importlib.import_module("star_jax.pipeline.beam.steps")
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise InputError(
            "--beam needs the extra beam, which is not installed: pip install 'star_jax[beam]'"
        ) from error


def _run(options: Sequence[str], build: Callable[[Any], None]) -> None:
    try:
        _steps().run([f"--{option}" for option in options], build)
    except Exception as error:  # A runner wraps what a worker raised in whatever it likes.
        found = _FAILED.search(f"{type(error).__name__}: {error}")
        if found is None:
            raise
        raise InputError(f"{found[1]}; the same command goes on with what is missing") from error
