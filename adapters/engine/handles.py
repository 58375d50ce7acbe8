"""Handles of a driver: ``generation << 32 | index`` on the outside, the vendor's pointer and what is known of it inside."""
from __future__ import annotations

import threading
from typing import Any

from ...hal.errors import InvalidHandle

__all__ = ["Handles", "Slot"]

_MAX_GENERATION = (1 << 24) - 1  # handles stay below 2**56


class Slot:
    """One live object of a vendor: a stream, event, module, kernel, graph or executable graph."""

    __slots__ = ("kind", "device", "pointer", "owned", "recorded", "timed", "shared", "keep", "error", "parent", "name")

    def __init__(self, kind: str, device: int, pointer: int, owned: bool = True, parent: int = 0, name: str = "") -> None:
        self.kind, self.device, self.pointer, self.owned, self.parent, self.name = kind, device, pointer, owned, parent, name
        self.recorded = False  # event: at least once
        self.timed = True  # event
        self.shared = 0  # kernel: bytes of shared memory it was allowed
        self.keep: list[Any] = []  # stream: host memory that queued work still reads
        self.error: BaseException | None = None  # stream: what a host function raised, not delivered yet


class Handles:
    """Live objects by handle.  Thread-safe: adding and removing lock, looking up is one dictionary access."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._live: dict[int, Slot] = {}
        self._generations: list[int] = []
        self._spare: list[int] = []
        self._lock = threading.Lock()

    def add(self, slot: Slot) -> int:
        with self._lock:
            if self._spare:
                index = self._spare.pop()
                self._generations[index] = self._generations[index] % _MAX_GENERATION + 1
            else:
                index = len(self._generations)
                self._generations.append(1)
            handle = self._generations[index] << 32 | index
            self._live[handle] = slot
            return handle

    def get(self, handle: int, kind: str) -> Slot:
        """
        Raises:
            InvalidHandle: never made, destroyed, or of another kind.
        """
        slot = self._live.get(handle)
        if slot is None or slot.kind != kind:
            raise InvalidHandle(f"{self._owner}: {kind} {handle!r} is {'a ' + slot.kind if slot else 'not alive'}; make a new one")
        return slot

    def pop(self, handle: int, kind: str) -> Slot:
        with self._lock:
            slot = self.get(handle, kind)
            del self._live[handle]
            self._spare.append(handle & 0xFFFFFFFF)
            return slot

    def kind(self, handle: int) -> str:
        slot = self._live.get(handle)
        return slot.kind if slot else ""

    def of(self, device: int, parent: int = 0) -> list[tuple[int, Slot]]:
        """Live objects of a device, or those made from ``parent``."""
        with self._lock:
            return [(h, s) for h, s in self._live.items() if s.device == device and (not parent or s.parent == parent)]
