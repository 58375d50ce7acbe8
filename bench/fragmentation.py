"""How much memory the caching allocator's policy wastes: ``python -m haian.bench.fragmentation`` prints the table.

Five traces of requests as programs make them, replayed against the native allocator under several policies, and against
two allocators that never split (bins of sizes).  A figure is reserved bytes over peak live bytes, as asked for, after the
whole trace; after the slash, the driver's allocations.  Everything is drawn from fixed seeds; no device memory is used.
Not here: what a request costs (allocator.py).
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from haian.hal.driver import Capabilities, Driver
from haian.hal.memory import Allocator

__all__ = ["POLICIES", "TRACES", "Figure", "measure", "table"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# A request: (key, bytes) takes, (key, 0) gives back what key took.  Bytes are those of float32 or float16 tensors.
Request = tuple[object, int]


@dataclass(frozen=True)
class Figure:
    """Of one trace under one policy: reserved bytes over peak live bytes (>= 1), and the driver's allocations."""

    ratio: float
    segments: int


# ---- traces ----------------------------------------------------------------------------------------------------------
def training() -> Iterator[Request]:
    """A 12-layer transformer (width 768, 12 heads, batch 8, float32) and Adam, 25 steps of 64 to 512 tokens."""
    rng, width, heads, batch = random.Random(1), 768, 12, 8
    weights = [3 * width * width, width * width, 4 * width * width, 4 * width * width, width, width, 3 * width, width]
    for layer in range(12):
        for i, n in enumerate(weights):
            for what in ("weight", "grad", "mean", "square"):
                yield (what, layer, i), 4 * n
    for _ in range(25):
        length = rng.randrange(64, 513)
        rows = batch * length
        kept = {"in": rows * width, "qkv": 3 * rows * width, "scores": batch * heads * length * length, "mixed": rows * width,
                "hidden": 4 * rows * width, "active": 4 * rows * width, "out": rows * width}
        for layer in range(12):
            for name, n in kept.items():
                yield ("tmp", name), 4 * n // 2  # a workspace that lives as long as its kernel
                yield (name, layer), 4 * n
                yield ("tmp", name), 0
        for layer in reversed(range(12)):
            for name, n in reversed(kept.items()):
                yield ("d", name), 4 * n
                yield (name, layer), 0
                yield ("d", name), 0


def cache_growth() -> Iterator[Request]:
    """A key-value cache of 8 layers (4096 wide, float16) that is concatenated anew at each of 450 tokens."""
    size = 2 * 4096
    for layer in range(8):
        for name in "kv":
            yield (name, layer, 0), size * 16
    for token in range(450):
        for layer in range(8):
            yield "x", size
            yield "y", 2 * 11008
            for name in "kv":
                yield (name, layer, token + 1), size * (17 + token)
                yield (name, layer, token), 0
            yield "x", 0
            yield "y", 0


def resnet() -> Iterator[Request]:
    """ResNet-50 inference in float32, batch 1, 32, 2, 16, ...: each layer's output lives until the next block is done."""
    rng = random.Random(2)
    blocks = [(56, 64, 256, 3), (28, 128, 512, 4), (14, 256, 1024, 6), (7, 512, 2048, 3)]
    for i, (_, thin, wide, _) in enumerate(blocks):
        for j, n in enumerate((thin * wide, 9 * thin * thin, thin * wide, wide)):
            yield ("weight", i, j), 4 * n
    for batch in [1, 32, 2, 16, 4, 8] + [rng.randrange(1, 33) for _ in range(30)]:
        yield "image", 4 * batch * 3 * 224 * 224
        yield "x", 4 * batch * 64 * 112 * 112
        yield "image", 0
        for side, thin, wide, repeat in blocks:
            area = 4 * batch * side * side
            for _ in range(repeat):
                yield "a", area * thin
                yield "work", area * thin * 9 // 4
                yield "b", area * thin
                yield "work", 0
                yield "a", 0
                yield "y", area * wide
                yield "b", 0
                yield "x", 0
                yield "x", area * wide
                yield "y", 0
        yield "logits", 4 * batch * 1000
        yield "x", 0
        yield "logits", 0


def _uniform(seed: int, low: float, high: float, most: int) -> Iterator[Request]:
    rng, live = random.Random(seed), list[int]()
    for i in range(20000):
        if len(live) >= most or (live and rng.random() < 0.45):
            yield live.pop(rng.randrange(len(live))), 0
        else:
            live.append(i)
            yield i, int(2 ** rng.uniform(low, high))


def wide() -> Iterator[Request]:
    """20,000 requests, at most 300 live, sizes log-uniform from 256 bytes to 64 MiB, ends in any order."""
    return _uniform(3, 8, 26, 300)


def small() -> Iterator[Request]:
    """The same with 1,500 live, from 16 bytes to 16 KiB."""
    return _uniform(4, 4, 14, 1500)


TRACES: dict[str, Callable[[], Iterator[Request]]] = {"training": training, "cache growth": cache_growth, "resnet": resnet,
                                                      "wide": wide, "small": small}


# ---- policies --------------------------------------------------------------------------------------------------------
class _Endless(Driver):
    """Addresses and no memory."""

    name = "trace"

    def __init__(self) -> None:
        self.top, self.allocations = GIB, 0

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        address = self.top = -(-self.top // align) * align
        self.top += nbytes
        self.allocations += 1
        return address

    def free(self, device: int, address: int) -> None:
        pass

    def sync(self, device: int) -> None:
        pass


class _Native:
    def __init__(self, policy: tuple[int, int, int, int, int] | None = None) -> None:
        self._driver = _Endless()
        facts = Capabilities("trace", 80 * GIB, 80 * GIB)  # an accelerator of 2023
        self._allocator = Allocator(self._driver, 0, "trace:0", facts, policy)
        self.take, self.give = self._allocator.take, self._allocator.give

    def reserved(self) -> int:
        return self._allocator.stats()["reserved_bytes"]

    def allocations(self) -> int:
        return self._driver.allocations


class _Bins:
    """Blocks of a bin's size, one allocation each, never split: ``steps`` bins to a power of two."""

    def __init__(self, steps: int) -> None:
        self._steps, self._bytes, self._made = steps, 0, 0
        self._free: dict[int, list[int]] = {}  # numbers of free blocks by size
        self._live: dict[int, int] = {}  # size by number

    def take(self, nbytes: int) -> int:
        top = 1 << max(8, (nbytes - 1).bit_length())
        step = max(top // 2 // self._steps, 256)
        size = -(-nbytes // step) * step
        free = self._free.setdefault(size, [])
        if not free:
            self._made += 1
            self._bytes += size
            free.append(self._made)
        block = free.pop()
        self._live[block] = size
        return block

    def give(self, block: int) -> None:
        self._free[self._live.pop(block)].append(block)

    def reserved(self) -> int:
        return self._bytes

    def allocations(self) -> int:
        return self._made


POLICIES: dict[str, Callable[[], _Native | _Bins]] = {
    "haian": _Native,
    "small up to 1 MiB": lambda: _Native((MIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB)),
    "segments of exact size": lambda: _Native((64 * KIB, 0, 10 * MIB, 0, 0)),
    "power-of-two bins": lambda: _Bins(1),
    "bins of 1/8 octave": lambda: _Bins(8)}


# ---- replay ----------------------------------------------------------------------------------------------------------
def measure(trace: Callable[[], Iterator[Request]], policy: Callable[[], _Native | _Bins]) -> Figure:
    """Replays a trace; what it leaves live stays so."""
    memory = policy()
    held: dict[object, tuple[int, int]] = {}
    live = peak = 0
    for key, nbytes in trace():
        if nbytes:
            held[key] = (memory.take(nbytes), nbytes)
            live += nbytes
            peak = max(peak, live)
        else:
            block, size = held.pop(key)
            memory.give(block)
            live -= size
    return Figure(memory.reserved() / peak, memory.allocations())


def table() -> str:
    """One row a policy, one column a trace: ratio / driver allocations; the first row is what users get."""
    width = max(map(len, POLICIES))
    lines = [" " * width + "".join(f"{name:>16}" for name in TRACES)]
    for name, policy in POLICIES.items():
        figures = [measure(trace, policy) for trace in TRACES.values()]
        lines.append(f"{name:<{width}}" + "".join(f"{f'{f.ratio:.2f} / {f.segments}':>16}" for f in figures))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
