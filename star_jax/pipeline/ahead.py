"""Work beside the device: items made ahead in one thread, results stored in another."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1  # How soon a maker that waits for room sees that nobody wants more.


class _End:
    """After the last item; carries what stopped the maker, if it failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Ahead(Generic[Item]):
    """Runs an iterator in a thread of its own, a few items ahead of whoever takes them.

    Attributes:
      waited_s: Seconds that the taker has waited for items.
    """

    def __init__(self, items: Iterable[Item], most: int) -> None:
        """Starts the thread; `most` items wait at a time."""
        self.waited_s = 0.0
        self._items = items
        self._ready: queue.Queue[Item | _End] = queue.Queue(most)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._make, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            start = time.monotonic()
            item = self._ready.get()
            self.waited_s += time.monotonic() - start
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """Ends the thread, whether or not all items were taken."""
        self._stopped.set()
        self._thread.join()

    def _make(self) -> None:
        error = None
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as caught:  # noqa: BLE001 - raised again where the items are taken.
            error = caught
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        """Whether the item found room before the end."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


@contextmanager
def ahead(items: Iterable[Item], most: int) -> Iterator[Ahead[Item]]:
    """Yields the items made ahead; the thread ends with the context."""
    made = Ahead(items, most)
    try:
        yield made
    finally:
        made.close()


class Behind:
    """Stores results in a thread of its own, one after the other; one more may wait.

    Attributes:
      waited_s: Seconds that whoever gives results has waited for earlier ones.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None

    def __call__(self, store: Callable[[], None]) -> None:
        """Stores this one after the last; raises what the last one raised."""
        self.wait()
        self._last = self._pool.submit(store)

    def wait(self) -> None:
        """Until all is stored."""
        if self._last is not None:
            start = time.monotonic()
            self._last.result()
            self.waited_s += time.monotonic() - start
            self._last = None

    def close(self) -> None:
        """Ends the thread once it has stored what it was given."""
        self._pool.shutdown()


@contextmanager
def behind() -> Iterator[Behind]:
    """Yields a storing thread; all is stored when the context ends well."""
    storing = Behind()
    try:
        yield storing
        storing.wait()
    finally:
        storing.close()
