"""What all who look at the page share: values made once, as many as a bound holds. What belongs to one is not here."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Cache:
    """Values by key. Threads that ask for the same key at once wait for the one that makes it.

    Args:
        make: the value of a key. What it raises reaches everyone who waits, and is forgotten.
        weigh: of a value, in the unit of the bound.
        bound: what all values may weigh; the least recently asked for go first. The newest stays, however heavy.
    """

    def __init__(self, make: Callable[[Any], Any], weigh: Callable[[Any], float], bound: float):
        self._make, self._weigh, self._bound = make, weigh, bound
        self._held: OrderedDict[Hashable, Future] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Hashable) -> Any:
        with self._lock:
            held = self._held.get(key)
            first = held is None
            if first:
                held = self._held[key] = Future()
            self._held.move_to_end(key)
        if first:
            try:
                held.set_result(self._make(key))
            except BaseException as error:
                with self._lock:
                    del self._held[key]
                held.set_exception(error)
            else:
                self._drop(key)
        return held.result()

    def __len__(self) -> int:
        return len(self._held)

    def _drop(self, newest: Hashable) -> None:
        with self._lock:
            weights = {key: self._weigh(held.result()) for key, held in self._held.items() if held.done()}
            total = sum(weights.values())
            for key, weight in weights.items():
                if total > self._bound and key != newest:
                    del self._held[key]
                    total -= weight
