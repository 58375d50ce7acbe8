"""What an allocation costs and whether eight threads ever lose a byte: ``python -m haian.bench.allocator [--seconds 60]``.

First the time of a pair (allocate from the cache, free), as Python sees it, loop included; then threads that allocate, fill,
read back and free on streams of their own and of each other, with exact totals at the end.
Not here: how much the policy wastes (fragmentation.py).
"""
from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from haian.hal.device import Device
from haian.hal.driver import DEVICE_TO_HOST, HOST_TO_DEVICE, Copy
from haian.hal.errors import OutOfMemory
from haian.hal.memory import Buffer
from haian.hal.stream import Stream

import haian

from . import timer

__all__ = ["Count", "costs", "stress"]

KIB, MIB = 1 << 10, 1 << 20


def costs(device: Device, nbytes: int = 5000) -> dict[str, float]:
    """Nanoseconds of each way to allocate from the cache and free, the loop included; the best of interleaved rounds."""
    allocator, stream = device.allocator, device.default_stream

    def pair(n: int, take: Callable[[int], int] = allocator.take, give: Callable[[int], None] = allocator.give) -> None:
        give(take(n))

    calls = {"a Python call of nothing": timer.Call(lambda n: None, (nbytes,)),
             "Buffer(device, n, stream)": timer.Call(Buffer, (device, nbytes, stream)),
             "take(n), give(address), a Python call": timer.Call(pair, (nbytes,)),
             "device.allocate(n)": timer.Call(device.allocate, (nbytes,))}
    return {name: timing.best for name, timing in timer.interleave(calls, 2.0).items()}


@dataclass
class Count:
    """Of one stress run.

    Attributes:
        allocations, bytes: asked for and got.
        copies: of a block written and read back.
        wrong: blocks that came back with other bytes than were written.
        refused: OutOfMemory raised, legal where the threads together ask for more than there is.
        unbalanced: totals of the allocator or driver that did not come out exact, in words.
        retries: allocations that succeeded or failed only after the cache was given back.
    """

    allocations: int = 0
    bytes: int = 0
    copies: int = 0
    wrong: int = 0
    refused: int = 0
    retries: int = 0
    unbalanced: list[str] = field(default_factory=list)


def stress(device: Device, seconds: float, threads: int = 8, largest: int = 4 * MIB, held: int = 12) -> Count:
    """Threads allocate, copy and free for ``seconds``; raises what a thread raised (other than OutOfMemory)."""
    total, lock, failures = Count(), threading.Lock(), list[BaseException]()
    device.synchronize()
    device.allocator.trim()  # (the host's Device.trim is that of host tensors)
    before, info = device.allocator.stats(), device.memory_info()
    streams = [device.stream() for _ in range(threads)]
    end = time.monotonic() + seconds

    def work(k: int) -> None:
        rng, mine, blocks = random.Random(k), Count(), list[tuple[Buffer, int, int]]()
        data, back = np.empty(largest, np.uint8), np.empty(largest, np.uint8)
        try:
            while time.monotonic() < end:
                nbytes, stamp = int(2 ** rng.uniform(0, np.log2(largest))), rng.randrange(256)
                stream = streams[k]
                try:
                    buffer = device.allocate(nbytes, stream)
                except OutOfMemory:
                    mine.refused += 1
                    blocks.clear()
                    continue
                mine.allocations += 1
                mine.bytes += nbytes
                _move(device, HOST_TO_DEVICE, buffer.address, data, nbytes, stamp, stream)
                if rng.random() < 0.2:  # another stream reads it too
                    other = streams[rng.randrange(threads)]
                    other.wait(stream.record())
                    buffer.used_on(other)
                blocks.append((buffer, nbytes, stamp))
                if len(blocks) > held:
                    buffer, nbytes, stamp = blocks.pop(rng.randrange(len(blocks)))
                    _move(device, DEVICE_TO_HOST, buffer.address, back, nbytes, None, stream)
                    mine.copies += 1
                    mine.wrong += bool((back[:nbytes] != stamp).any())
        except BaseException as e:  # noqa: BLE001 - handed to the caller's thread, which raises it
            failures.append(e)
        finally:
            blocks.clear()
            with lock:
                for name in ("allocations", "bytes", "copies", "wrong", "refused"):
                    setattr(total, name, getattr(total, name) + getattr(mine, name))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    for stream in streams:
        stream.close()
    device.allocator.trim()
    after = device.allocator.stats()
    total.retries = after["oom_retries"] - before["oom_retries"]
    exact = {"allocations": before["allocations"] + total.allocations, "live_bytes": before["live_bytes"],
             "reserved_bytes": before["reserved_bytes"], "segments": before["segments"]}
    total.unbalanced = [f"{name}: {after[name]}, not {want}" for name, want in exact.items() if after[name] != want]
    if not device.capabilities.host_access and device.memory_info() != info:  # (a host's free memory is not ours alone)
        total.unbalanced.append(f"(free, total) of the driver: {device.memory_info()}, not {info}")
    return total


def _move(device: Device, kind: str, address: int, host: np.ndarray, nbytes: int, stamp: int | None, stream: Stream) -> None:
    if stamp is not None:
        host[:nbytes] = stamp
    at = host.__array_interface__["data"][0]
    dst, src = (address, at) if kind == HOST_TO_DEVICE else (at, address)
    device.driver.copy(device.index, Copy(kind, dst, src, nbytes), stream.handle)
    stream.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m haian.bench.allocator", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of the threads' run on each device")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("devices", nargs="*", help="cpu:0 and sim:0 where none is given")
    args = parser.parse_args()
    for place in args.devices or [d.name for d in haian.devices() if d.name in ("cpu:0", "sim:0")]:
        device = haian.device(place)
        for name, ns in costs(device).items():
            print(f"{device.name}  {name:<40} {ns:8.1f} ns")
        count = stress(device, args.seconds, args.threads)
        print(f"{device.name}  {args.threads} threads, {args.seconds:g} s: {count.allocations} allocations, {count.copies} read back, "
              f"{count.wrong} wrong, {count.refused} refused, {count.retries} retried, totals {'; '.join(count.unbalanced) or 'exact'}")


if __name__ == "__main__":
    main()
