"""All tests run on the CPU with eight devices; a test takes the sub-mesh it needs."""

import logging
import os
import shutil
import tempfile
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time: programs are small, and many tests and processes have the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # Of the whole session: workers inherit it.
        folder = tempfile.mkdtemp(prefix="star_jax-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        jax.config.update("jax_compilation_cache_dir", folder)
        config.add_cleanup(lambda: shutil.rmtree(folder))
    config.addinivalue_line(
        "markers", "extra(name): needs that extra; runs when `tests/run.sh --extras` names it"
    )


def pytest_collection_modifyitems(items):
    """Skips what needs an extra nobody asked for; one that was asked for must be there.

    Files with slow tests come first: no worker should be left with one when all others are done.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    asked = os.environ.get("STAR_EXTRAS", "").split(",")
    for item in items:
        for mark in item.iter_markers("extra"):
            if mark.args[0] not in asked:
                item.add_marker(pytest.mark.skip(reason=f"needs the extra {mark.args[0]}"))


class Outcome(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines that say what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("star: error: ")]


@pytest.fixture
def star(capsys):
    """Runs `star` in this process; what it does to the log ends with the test."""
    from star_jax.cli import main  # Not before jaxtyping's hook is installed.

    loggers = [logging.getLogger(), logging.getLogger("star_jax")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]

    def run(*args) -> Outcome:
        code = main([str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    yield run
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def one_thread():
    """Of scikit-learn's libraries: on busy cores their threads wait for each other, turning."""
    import threadpoolctl  # pyright: ignore[reportMissingImports]

    with threadpoolctl.threadpool_limits(1):
        yield
