"""Several processes that run one job: what the first alone writes, and how all of them end.

All see one working directory. Each runs the same program; arrays on the mesh are global. The first
process writes the files that are written once and says what is said once. Functions that all call
together say so. What only one process can do, the first does as if there were no others, while
these wait: `by_the_first`.
"""

import dataclasses
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # Its key-value store has no public name.
from jax.experimental import multihost_utils
from jaxtyping import Float32, Shaped
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

from star_jax.config import InputError

AUTO = "auto"
_HEARTBEAT_S = 30  # A process that is silent for so long is dead.
_NAMED_S = 45  # After the first error, for the runtime to say which one it is.
_JOIN_S = 300
_ASK_EVERY = 10
_LOOK_S = 0.2  # Between two looks at what others have done.

_turns = itertools.count()  # Of the first process; all count alike.
_meetings = itertools.count()  # Likewise.
_state = {"alone": False}  # Whether this is the first process, in a turn of its own.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """How a process finds the others.

    Attributes:
      coordinator: Host and port of the first one, or "auto": Slurm, Kubernetes, Open MPI or a TPU
        say all three.
      num_processes: Of the job.
      process_id: Of this one, from 0 on.
    """

    coordinator: str
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        known = self.num_processes is not None and self.process_id is not None
        if self.coordinator == AUTO and (self.num_processes is None) != (self.process_id is None):
            raise InputError(
                "--coordinator auto with one of --num-processes and --process-id: both or none"
            )
        if self.coordinator != AUTO and not known:
            raise InputError(
                f"--coordinator {self.coordinator} needs --num-processes and --process-id: "
                "give them, or auto"
            )
        if not 0 <= (self.process_id or 0) < (self.num_processes or 1):
            raise InputError(
                f"--process-id {self.process_id} is none of --num-processes {self.num_processes}, "
                "from 0 on"
            )


def join(config: Joined) -> None:
    """Meets the others; before anything asks JAX for its devices.

    A process that ends before its job does, or is silent for 30 s, ends all others.

    Raises:
      InputError: They did not all come within five minutes, or nothing says where they are.
    """
    detected = config.coordinator == AUTO
    jax.config.update("jax_enable_preemption_service", False)  # It would swallow every SIGTERM.
    try:
        jax.distributed.initialize(
            coordinator_address=None if detected else config.coordinator,
            num_processes=config.num_processes,
            process_id=config.process_id,
            cluster_detection_method=None if detected else "deactivate",
            initialization_timeout=_JOIN_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--coordinator {config.coordinator}: {error}") from error
    _log.info("process %d of %d", jax.process_index(), jax.process_count())


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def count() -> int:
    """How many processes do what this one does."""
    return 1 if _state["alone"] else jax.process_count()


def is_first() -> bool:
    """Whether this process writes what is written once; alone it is."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether no other process does what this one does."""
    return count() == 1


def devices() -> Sequence[Any]:
    """Those that all processes at work have together."""
    return jax.local_devices() if is_alone() else jax.devices()


def by_the_first(work: Callable[[], Any]) -> Any:
    """The first process works as if it were the only one, and all go on with what it returns.

    The others wait as long as it takes, and compute nothing meanwhile. All call it; where no others
    were met, it is a call. An error of the first one ends it, and with it the others.

    Args:
      work: Returns what JSON can say.
    """
    if not joined():
        return work()
    key = f"star_jax/turn/{next(_turns)}"
    client: Any = distributed.global_state.client
    if not is_first():
        answer, counted = json.loads(_told(client, key))
        while int(OperationIdGenerator.get_current_operation_id()) < counted:
            OperationIdGenerator.next_operation_id()
        return answer
    _state["alone"] = True  # After an error too: the others are not where this one is.
    answer = work()
    _state["alone"] = False
    # Orbax counts what it reads and writes, and processes that count apart do not meet again.
    counted = int(OperationIdGenerator.get_current_operation_id())
    client.key_value_set(key, json.dumps([answer, counted]))
    return answer


def meet() -> None:
    """Waits for all others at the same place, for as long as they take; all call it.

    What `wait` asks of the devices fails where another process comes minutes later.
    """
    if is_alone():
        return
    key, client = f"star_jax/meeting/{next(_meetings)}", distributed.global_state.client
    assert client is not None
    client.key_value_set(f"{key}/{jax.process_index()}", "here")
    for index in range(jax.process_count()):
        _told(client, f"{key}/{index}")


def _told(client: Any, key: str) -> str:
    """What a process says under a key, once it does.

    Asked again and again: a call that blocks would keep signals from this process.
    """
    while True:
        try:
            return client.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
        time.sleep(_LOOK_S)


def wait(what: str) -> None:
    """Waits for all others at the same place, which `what` names."""
    if not is_alone():
        multihost_utils.sync_global_devices(what)


def write_once(write: Callable[[], object], what: str) -> None:
    """The first process writes, and all go on when it has; all call it."""
    if is_first():
        write()
    wait(what)


def agreed(value: float) -> float:
    """What the first process has; all call it."""
    if is_alone():
        return value
    halves = np.array([value], np.float64).view(np.uint32)
    return float(np.asarray(multihost_utils.broadcast_one_to_all(halves)).view(np.float64)[0])


def settled(step: int, value: float) -> float:
    """The greatest value that any process has, which they ask at every tenth step; else 0.

    Alone, the value. All call it at the same steps.
    """
    return greatest(value) if is_alone() or step % _ASK_EVERY == 0 else 0.0


def greatest(value: float) -> float:
    """The greatest value that any process has; all call it."""
    if is_alone():
        return value
    return float(multihost_utils.process_allgather(np.float32(value)).max())


def in_shares(
    total: int, work: Callable[[slice], Float32[np.ndarray, "n ..."]]
) -> Float32[np.ndarray, "N ..."]:
    """So many rows, of which each process makes a share, whole on every process; all call it.

    Args:
      total: Rows.
      work: Makes some of them.
    """
    if is_alone():
        return work(slice(0, total))
    size = -(-total // count())
    start = min(size * jax.process_index(), total)
    own = work(slice(start, min(start + size, total)))
    own = np.pad(own, ((0, size - len(own)), *[(0, 0)] * (own.ndim - 1)))
    gathered = np.asarray(multihost_utils.process_allgather(own))
    return gathered.reshape(-1, *own.shape[1:])[:total]


def fetched(array: jax.Array) -> Shaped[np.ndarray, "..."]:
    """A global array on the host, whole on every process; all call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def await_verdict() -> None:
    """After an error that another process may have caused: until the runtime names a dead one.

    It ends this process when it does; it returns where all others live.
    """
    _log.error("process %d failed; asking which of the others are alive", jax.process_index())
    time.sleep(_NAMED_S)


def leave(code: int) -> NoReturn:
    """Ends this process after an error: it must not wait for others that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)
