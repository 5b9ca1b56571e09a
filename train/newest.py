"""Between a reader that never waits and a consumer that may be slower: only the newest items are kept."""

from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Newest(Generic[ItemT]):
    """At most `capacity` items; each one more pushes out the oldest, which is counted in `dropped`.

    `lossless`: the reader waits instead. `kept`: items that are never dropped, and take no room. For one reader
    and one consumer.
    """

    def __init__(
        self, capacity: int, lossless: bool = False, kept: Callable[[ItemT], bool] = lambda _item: False
    ) -> None:
        self.dropped = 0
        self._items: deque[ItemT] = deque()
        self._capacity, self._lossless, self._kept = capacity, lossless, kept
        self._changed = Condition()
        self._closed = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[ItemT]) -> None:
        """Put every item until they end or the box is closed; what `items` raises, `take` will raise."""
        try:
            for item in items:
                if not self.put(item):
                    return
        except BaseException as error:
            self._error = error
        finally:
            self.close()

    def put(self, item: ItemT) -> bool:
        """Add the newest item. False: nobody wants more."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: len(self._items) < self._capacity or self._closed)
            elif not self._kept(item):
                self._make_room()
            self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def take(self, patience: float) -> list[ItemT] | None:
        """All that is there, oldest first; of a lossless box one item. None after the last one, nothing if none
        comes within `patience` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, patience)
            if not self._items and self._closed:
                if self._error is not None:
                    raise self._error
                return None
            most = 1 if self._lossless else len(self._items)
            taken = [self._items.popleft() for _ in range(min(len(self._items), most))]
            self._changed.notify_all()
            return taken

    def _make_room(self) -> None:
        places = [place for place, item in enumerate(self._items) if not self._kept(item)]
        if len(places) >= self._capacity:
            del self._items[places[0]]
            self.dropped += 1

    def close(self) -> None:
        """No more items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
