"""A process that changes a registry, and waits or dies on the way: see `_MOMENTS`.

other_process.py MOMENT URL REF...
"""

import os
import signal
import sys
from pathlib import Path

from star_jax.config import InputError
from star_jax.embeddings.registry import registry as module
from star_jax.embeddings.registry.files import LocalFiles
from star_jax.embeddings.registry.journal import ConflictError
from star_jax.embeddings.registry.registry import Registry


def _say(word):
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def meet(url, ref):
    """Promotes; between the decision and the event, waits for a line."""
    append = module.append

    def after_others(*args):
        _say("decided")
        sys.stdin.readline()
        return append(*args)

    module.append = after_others
    try:
        Registry(url).promote(ref)
        _say("won")
    except ConflictError as error:
        _say(error)


def race(url, *refs):
    """Promotes one after the other in turns; says how often it won."""
    won = 0
    _say("decided")
    sys.stdin.readline()
    for turn in range(30):
        try:
            Registry(url).promote(refs[turn % len(refs)])
            won += 1
        except InputError as error:
            if not any(reason in str(error) for reason in ("meanwhile", "is active already")):
                raise
    _say(won)


def die(url, folder):
    """Adds an artefact, and is killed when its first file is there."""
    store = LocalFiles.store

    def killed(self, name, path):
        store(self, name, path)
        os.kill(os.getpid(), signal.SIGKILL)

    LocalFiles.store = killed
    Registry(url).add(Path(folder), "market")


_MOMENTS = {"meet": meet, "race": race, "die": die}

if __name__ == "__main__":
    _MOMENTS[sys.argv[1]](*sys.argv[2:])
