"""Checks 66 and 67: modules, launches and graphs, with the kernels of images.py."""
from __future__ import annotations

import ctypes
import math
from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, HOST_TO_DEVICE, Copy, Launch
from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, Busy, EnvironmentMissing, HaianError, InternalError, InvalidHandle, Unsupported
from .check import NotOffered, Subject, check, host, require
from .images import image_of, typed
from .stream import holds, start, sync_within

_BAD_IMAGE = (ArgumentError, Unsupported, EnvironmentMissing, InternalError)
_REPLAYS = 100
_PIECES = 40  # of a recording; runtimes reserve room for fewer
_MANY = 5000  # programs of a launch
_BEYOND_16_BITS = 70_000  # programs along an axis that claims more than 65,535
_LAUNCHES = 20  # of each of four threads


class Axpy:
    """conform_axpy loaded on the device, with x and y of ``n`` small integers, so that every result is exact.

    sign: of what a launch adds: -1 for an image whose kernel subtracts (``Image.twin``).
    """

    def __init__(self, s: Subject, n: int = 37, image: bytes = b"", sign: int = 1) -> None:
        self.s, self.n, self.sign = s, n, sign
        self.image = image_of(s.caps, s.offers("module"))
        self.module = s.driver.module_load(s.device, image or self.image.data, self.image.format)
        self.kernel = s.driver.get_kernel(self.module, self.image.name)
        self.x, self.y = s.alloc(4 * n), s.alloc(4 * n)
        self.host_x = np.arange(n, dtype=np.float32) - 5
        self.expected = np.arange(n, dtype=np.float32) * 3
        s.upload(self.x, self.host_x.view(np.uint8))
        s.upload(self.y, self.expected.view(np.uint8))

    def desc(self, a: float = 2.0) -> Launch:
        return Launch(self.kernel, (self.n, 1, 1), 1, 0, [("*fp32", self.x), ("*fp32", self.y), ("fp32", a)])

    def launch(self, stream: int = 0, a: float = 2.0, times: int = 1) -> None:
        """Queues one launch; ``expected`` then counts it ``times`` times."""
        self.s.driver.launch(self.s.device, self.desc(a), stream)
        self.expected = self.expected + np.float32(self.sign * a * times) * self.host_x

    def check(self, what: str) -> None:
        seen = self.s.download(self.y, 4 * self.n).view(np.float32)
        wrong = np.flatnonzero(seen != self.expected)
        require(not wrong.size, f"{what}: {wrong.size} of {self.n} results are wrong" + (
            f", the first at {wrong[0]}: {seen[wrong[0]]:g}, needs {self.expected[wrong[0]]:g}" if wrong.size else ""))

    def unload(self) -> None:
        self.s.driver.module_unload(self.module)


@check(66, "module", "X", needs=("module",))
def module(s: Subject) -> None:
    """Bad images, kernels, arguments and sizes are refused; a launch is exact, also one queued before the module goes."""
    d, device = s.driver, s.device
    work = Axpy(s)
    image = work.image
    for bad in (b"not an image of any kind", bytes(range(256)), image.data[: len(image.data) // 2], image.data[:16]):
        s.expect(_BAD_IMAGE, d.module_load, device, bad, image.format)
    s.expect((ArgumentError, Unsupported), d.module_load, device, image.data, "no such format")
    s.expect((ArgumentError, EnvironmentMissing), d.get_kernel, work.module, "no_such_kernel")

    stream = s.stream() if s.offers("stream") else 0
    work.launch()
    d.sync(device)
    work.check("a launch on stream 0")
    good = work.desc()
    sizes = [good._replace(grid=g) for g in ((0, 1, 1), (work.n, 0, 1), (work.n, 1, 0))]
    if s.validated:  # a bare driver need not count
        sizes += [good._replace(grid=tuple(m + 1 if k == i else 1 for k in range(3)))  # type: ignore[arg-type]
                  for i, m in enumerate(s.caps.max_grid) if m < 2**31 - 1]
        sizes.append(good._replace(shared_bytes=s.caps.max_shared_bytes + 1))
    sizes.append(good._replace(threads=s.caps.max_threads + 1))
    for desc in sizes:
        s.expect((ArgumentError, Unsupported), d.launch, device, desc, stream)
    if s.offers("kernel_info"):
        info = d.kernel_info(work.kernel)
        require(info.name in ("", image.name), f"kernel_info says {info.name!r} of the kernel {image.name!r}")  # in C it has no name
        ranges = (("max_threads", info.max_threads, 1, s.caps.max_threads), ("shared_bytes", info.shared_bytes, 0, s.caps.max_shared_bytes),
                  ("registers", info.registers, 0, 1 << 16), ("local_bytes", info.local_bytes, 0, 1 << 20))
        for name, value, low, high in ranges:
            require(value == -1 or low <= value <= high, f"kernel_info says {name} {value}; needs {low} to {high}, or -1")
        if info.args is not None:
            require(len(info.args) == 3, f"kernel_info says {len(info.args)} arguments of a kernel with 3")
            for args in (good.args[:2], [*good.args, ("i32", 1)], []):
                s.expect(ArgumentError, d.launch, device, good._replace(args=args), stream)
            if all(info.args):
                s.expect(ArgumentError, d.launch, device, good._replace(args=[*good.args[:2], ("fp64", 2.0)]), stream)
    if stream:
        with suppress(HaianError):  # a refused launch may leave its error with the stream; the next sync has it
            d.stream_sync(stream)
    work.check("refused launches")
    work.launch(stream, -3.0)
    if stream:
        sync_within(s, stream, "a stream with a launch")
    d.sync(device)
    work.check("a launch after refused ones")
    d.launch(device, good._replace(shared_bytes=s.caps.max_shared_bytes), stream)
    work.expected = work.expected + np.float32(2) * work.host_x
    d.sync(device)
    work.check(f"a launch with max_shared_bytes, {s.caps.max_shared_bytes}")
    _grids(s, work, stream)
    _arguments(s, work, stream)
    _twins(s, work, stream)
    _subnormals(s, work)
    _dtypes(s, stream)
    _at_once(s)

    # a second module of the same image, and a kernel asked for twice, are objects of their own
    twin = Axpy(s)
    again = d.get_kernel(work.module, image.name)
    twin.unload()
    d.launch(device, work.desc(1.0)._replace(kernel=again), stream)
    work.expected = work.expected + work.host_x
    d.sync(device)
    work.check("a launch after another module of the same image was unloaded")
    if stream:
        with suppress(NotOffered), s.blocked(stream) as gate:
            aside, before = s.stream(), work.expected  # to look while the stream is blocked: stream 0 may be one that waits for it
            work.launch(stream, 5.0)
            seen = s.download(work.y, 4 * work.n, aside)
            sync_within(s, aside, "a stream beside a blocked one")
            require((seen.view(np.float32) == before).all(), "a launch queued on a blocked stream has run already")
            ended = start(s, lambda: _unload(work))
            with suppress(AssertionError):  # it may wait for the launch, or return at once: both are right
                s.until(ended, "module_unload with a launch queued", 0.02)
            gate.set()
            s.until(ended, "module_unload with a launch queued")
        sync_within(s, stream, "a stream whose module was unloaded with a launch queued")
        d.sync(device)
        work.check("a launch queued before its module was unloaded")
    with suppress(InvalidHandle):  # unloaded above, if streams can be held here
        work.unload()
    s.expect(InvalidHandle, d.get_kernel, work.module, image.name)
    s.expect(InvalidHandle, d.module_unload, work.module)
    if s.validated:  # a bare driver may run what it has unmapped
        s.expect(InvalidHandle, d.launch, device, work.desc(), stream)


def _grids(s: Subject, work: Axpy, stream: int) -> None:
    """Every program of a grid runs once, along each axis, and knows its place and the grid."""
    d, device, most = s.driver, s.device, min(_MANY, s.caps.max_grid[0], s.caps.max_grid_product)
    many = Axpy(s, most)
    many.launch(stream)
    d.sync(device)
    many.check(f"a grid of {most} programs")
    many.unload()
    if not work.image.grid:
        return
    kernel = d.get_kernel(work.module, work.image.grid)
    shapes = [((5, 3, 2), 1), ((2, 3, 5), min(2, s.caps.max_threads))]
    if not s.validated:  # the layer above passes the same launches on
        shapes += [(tuple(min(m, _BEYOND_16_BITS if m > 0xFFFF else 300) if k == i else 1 for k in range(3)), 1)  # type: ignore[misc]
                   for i, m in enumerate(s.caps.max_grid)]
    for grid, threads in shapes:
        n = math.prod(grid)
        if n > s.caps.max_grid_product or any(g > m for g, m in zip(grid, s.caps.max_grid)):
            continue
        out = s.guard(24 * n)
        s.upload(out.address, np.zeros(24 * n, np.uint8))
        d.launch(device, Launch(kernel, grid, threads, 0, [("*i32", out.address)]), stream)
        d.sync(device)
        seen = out.check(f"a launch of grid {grid}").view(np.int32).reshape(n, 6)
        z, y, x = (axis.reshape(-1) for axis in np.indices(grid[::-1]))
        wanted = np.stack([x, y, z, *(np.full(n, g) for g in grid)], axis=1)
        wrong = np.flatnonzero((seen != wanted).any(axis=1))
        require(not wrong.size, f"grid {grid} of {threads} threads: {wrong.size} of {n} programs are wrong" + (
            f"; program {wanted[wrong[0]].tolist()} of (x, y, z, grid) left {seen[wrong[0]].tolist()}" if wrong.size else ""))
        s.free(out.base)


def _arguments(s: Subject, work: Axpy, stream: int) -> None:
    """Arguments of every size arrive whole, in their places: negative, large, not representable in fewer bits."""
    d, device = s.driver, s.device
    x, y = s.guard(8), s.guard(4)
    a, b, c = -123_456_789, float(np.float32(-0.1)), 2**31 - 1
    wide_a, wide_b = -(2**40) - 12_345, 0.1
    cases = [(work.image.args, [("i32", a), ("*i32", x.address), ("fp32", b), ("i32", c), ("*fp32", y.address)], "<i4", [a, c], "<f4", b)]
    if s.caps.int64_math and {"int64", "float64"} <= set(s.caps.dtypes_load):
        x_wide, y_wide = s.guard(8), s.guard(8)
        wide = [("i64", wide_a), ("*i64", x_wide.address), ("fp64", wide_b), ("*fp64", y_wide.address)]
        cases.append((work.image.wide, wide, "<i8", [wide_a], "<f8", wide_b))
    for name, args, integers, first, floats, second in cases:
        if not name:
            continue
        d.launch(device, Launch(d.get_kernel(work.module, name), (1, 1, 1), 1, 0, args), stream)  # type: ignore[arg-type]
        d.sync(device)
        one, two = (x, y) if len(first) == 2 else (x_wide, y_wide)
        seen = [int(v) for v in one.check(f"integers of {name}").view(integers)], float(two.check(f"floats of {name}").view(floats)[0])
        require(seen == (first, second), f"a kernel with the arguments {', '.join(str(v) for t, v in args if t[0] != '*')} got {seen}; needs {first, second}")


def _twins(s: Subject, work: Axpy, stream: int) -> None:
    """Another image with the same names and as many bytes is another module."""
    if not work.image.twin:
        return
    twin, again = Axpy(s, image=work.image.twin, sign=-1), Axpy(s)
    for one in (twin, again):
        one.launch(stream)
    s.driver.sync(s.device)
    twin.check("a launch of another image with the same names")
    again.check("a launch of an image loaded beside another one with the same names")
    twin.unload()
    again.unload()


def _subnormals(s: Subject, work: Axpy) -> None:
    """float32 results below the normal range are kept, or flushed to 0 where flushes_subnormals is claimed."""
    n = 4
    x, y = s.alloc(4 * n), s.alloc(4 * n)
    small = np.full(n, 1e-40, np.float32)
    s.upload(x, small.view(np.uint8))
    s.upload(y, np.zeros(4 * n, np.uint8))
    s.driver.launch(s.device, Launch(work.kernel, (n, 1, 1), 1, 0, [("*fp32", x), ("*fp32", y), ("fp32", 1.0)]))
    s.driver.sync(s.device)
    seen = s.download(y, 4 * n).view(np.float32)
    wanted = np.zeros_like(small) if s.caps.flushes_subnormals else small
    require((seen == wanted).all(), f"0 + 1 * 1e-40 in float32 gave {seen[0]:g}; flushes_subnormals={s.caps.flushes_subnormals} means {wanted[0]:g}")


def _dtypes(s: Subject, stream: int) -> None:
    """A device that takes Triton IR loads, stores and adds the dtypes that it claims; no other format is written here so easily."""
    if s.caps.image_format != "ttir" or s.validated:
        return
    x, y = s.alloc(8), s.alloc(8)
    for dtype in s.caps.dtypes_load:
        for math_ in (False, True) if dtype in s.caps.dtypes_math else (False,):
            image, kind = typed(dtype, math_), BY_NAME[dtype]
            if not image:
                continue
            s.upload(x, np.ones(1, kind.numpy).view(np.uint8))
            module = s.driver.module_load(s.device, image, "ttir")
            kernel = s.driver.get_kernel(module, "conform_typed")
            args: list[tuple[str, int | float]] = [(f"*{kind.triton}", x), (f"*{kind.triton}", y)]
            s.driver.launch(s.device, Launch(kernel, (1, 1, 1), 1, 0, args), stream)
            s.driver.sync(s.device)
            seen, wanted = float(s.download(y, kind.itemsize).view(kind.numpy)[0]), 2.0 if math_ else 1.0
            require(seen == wanted, f"claims {dtype}, but {'1 + 1' if math_ else 'a copy of 1'} in a kernel gave {seen:g}")
            s.driver.module_unload(module)


def _at_once(s: Subject) -> None:
    """Four threads launch at once, each with arguments and a stream of its own."""
    works = [Axpy(s) for _ in range(4)]
    streams = [s.stream() if s.offers("stream") else 0 for _ in works]

    def body(i: int) -> None:
        for k in range(_LAUNCHES):
            works[i].launch(streams[i], float(i + 1 + k % 2))

    s.threads(4, body)
    s.driver.sync(s.device)
    for work in works:
        work.check("launches of four threads at once")
        work.unload()


def _unload(work: Axpy) -> None:
    with suppress(Busy):  # an answer too; the module then stays
        work.unload()


@check(67, "graph", "X", needs=("graph", "stream"))
def graph(s: Subject) -> None:
    """A recording runs nothing; its replays, a hundred times, do what the calls would; an aborted one leaves no trace."""
    d, n = s.driver, 4096
    stream, other = s.stream(), s.stream()
    a, b, t = (s.alloc(n) for _ in range(3))
    first, second = s.pattern(n), s.pattern(n)
    s.upload(a, first)
    s.upload(b, second)
    s.upload(t, np.zeros(n, np.uint8))
    work = None
    with suppress(NotOffered):
        work = Axpy(s)

    def queue(times: int) -> None:
        """Swaps a and b; one launch."""
        for dst, src in ((t, a), (a, b), (b, t)):
            d.copy(s.device, Copy(DEVICE_TO_DEVICE, dst, src, n), stream)
        if work is not None:
            work.launch(stream, 2.0, times)

    def see(swaps: int, what: str) -> None:
        wanted = (second, first) if swaps % 2 else (first, second)
        require((s.download(a, n) == wanted[0]).all() and (s.download(b, n) == wanted[1]).all(), f"{what}: copies did not happen {swaps} times")
        if work is not None:
            work.check(what)

    queue(1)
    sync_within(s, stream, "a stream")
    see(1, "eager work")

    d.graph_begin(stream)
    queue(0)
    made = d.graph_end(stream)
    sync_within(s, stream, "a stream after graph_end")
    d.sync(s.device)
    require(isinstance(made, int) and made > 0, f"graph_end gave {made!r}; needs a handle")
    see(1, "after recording, before any launch of it")
    run = d.graph_instantiate(made)
    d.graph_launch(run, stream)
    if work is not None:
        work.expected = work.expected + np.float32(2) * work.host_x
    sync_within(s, stream, "a stream with a graph")
    see(2, "the first launch of a graph")
    d.graph_destroy(made)  # what was made of it stays
    for i in range(_REPLAYS):
        d.graph_launch(run, other if i % 2 else stream)
        if i % 2 or i == _REPLAYS - 1:
            d.stream_sync(other if i % 2 else stream)
        else:
            d.stream_sync(stream)
    if work is not None:
        work.expected = work.expected + np.float32(2 * _REPLAYS) * work.host_x
    see(2 + _REPLAYS, f"{_REPLAYS} replays of a graph")
    for _ in range(_REPLAYS + 1):
        d.graph_launch(run, stream)
    if work is not None:
        work.expected = work.expected + np.float32(2 * (_REPLAYS + 1)) * work.host_x
    sync_within(s, stream, "a stream with many graphs")
    see(2 + _REPLAYS + _REPLAYS + 1, f"{_REPLAYS + 1} replays queued at once")
    d.graph_destroy(run)
    s.expect(InvalidHandle, d.graph_launch, run, stream)
    s.expect(InvalidHandle, d.graph_destroy, run)
    s.expect(InvalidHandle, d.graph_instantiate, made)

    d.graph_begin(stream)
    s.fill(t, 77, n, stream)
    require(d.graph_end(stream, abort=True) == 0, "graph_end with abort gave a handle; needs 0")
    sync_within(s, stream, "a stream whose recording was aborted")
    d.sync(s.device)
    require(not holds(s.download(t, n), 77), "work of an aborted recording happened")
    s.fill(t, 78, n, stream)
    sync_within(s, stream, "a stream whose recording was aborted")
    require(holds(s.download(t, n), 78), "after an aborted recording the stream does not run work as before")
    require(d.stream_query(stream) is True, "a stream is not ready after an aborted recording")
    if work is not None:
        work.unload()
    _pieces(s, stream)
    _later_bytes(s, stream)
    _calls_back(s, stream)


def _pieces(s: Subject, stream: int) -> None:
    """Two recordings of many pieces, copies and fills, each replayed in stream order on its own; a foreign stream is refused."""
    d, size = s.driver, 64
    n = _PIECES * size
    source, data = s.alloc(n), s.pattern(n)
    s.upload(source, data)
    targets, runs = [s.alloc(n + 64) for _ in range(2)], []
    for target in targets:
        d.graph_begin(stream)
        s.fill(target, 0x5A, n, stream)
        s.fill(target + n, 0x66, 64, stream)
        for i in range(1, _PIECES):
            d.copy(s.device, Copy(DEVICE_TO_DEVICE, target + i * size, source + (_PIECES - i) * size, size), stream)
        made = d.graph_end(stream)
        runs.append(d.graph_instantiate(made))
        d.graph_destroy(made)
    wanted = np.concatenate([data.reshape(_PIECES, size)[[0, *range(_PIECES - 1, 0, -1)]].reshape(-1), np.full(64, 0x66, np.uint8)])
    wanted[:size] = 0x5A

    def see(target: int, what: str) -> None:
        wrong = np.flatnonzero(s.download(target, n + 64) != wanted)
        require(not wrong.size, f"{what} of {_PIECES + 1} pieces: {wrong.size} of {n + 64} bytes are wrong, the first at {wrong[:1]}")

    for target in targets:
        s.upload(target, np.zeros(n + 64, np.uint8))
    d.graph_launch(runs[0], stream)
    sync_within(s, stream, "a stream with a graph of many pieces")
    see(targets[0], "a graph")
    require(not s.download(targets[1], n + 64).any(), "a launch of one graph did the work of another")
    with suppress(NotOffered), s.blocked(stream):
        s.until(start(s, lambda: d.graph_launch(runs[1], stream)), "graph_launch on a blocked stream returns")
        aside = s.stream()
        seen = s.download(targets[1], n + 64, aside)
        sync_within(s, aside, "a stream beside a blocked one")
        require(not seen.any(), "a graph launched on a blocked stream has run already")
    if not s.validated and s.count > 1:
        s.expect((ArgumentError, InvalidHandle), d.graph_launch, runs[0], s.stream(device=s.other()))
    sync_within(s, stream, "a released stream with a graph")
    d.graph_launch(runs[1], stream)
    sync_within(s, stream, "a stream with a graph of many pieces")
    see(targets[1], "a second graph")
    for run in runs:
        d.graph_destroy(run)


def _later_bytes(s: Subject, stream: int) -> None:
    """A recorded copy from pinned memory brings what lies there at each replay."""
    if not s.offers("pinned"):
        return
    d, n = s.driver, 4096
    target = s.alloc(n)
    try:
        pinned = d.host_alloc(s.device, n)
    except Unsupported:
        return
    try:
        ctypes.memset(pinned, 0x11, n)
        d.graph_begin(stream)
        d.copy(s.device, Copy(HOST_TO_DEVICE, target, pinned, n), stream)
        made = d.graph_end(stream)
        run = d.graph_instantiate(made)
        for _ in range(2):
            data = s.pattern(n)
            ctypes.memmove(pinned, host(data), n)
            d.graph_launch(run, stream)
            sync_within(s, stream, "a stream with a recorded copy")
            require((s.download(target, n) == data).all(), "a replay of a recorded copy brought other bytes than the host has now")
        d.graph_destroy(run)
        d.graph_destroy(made)
    finally:
        d.free(s.device, pinned)


def _calls_back(s: Subject, stream: int) -> None:
    """A recorded host function runs in the first replay, not before; Unsupported is an answer too."""
    if not s.offers("host_func"):
        return
    d, ran = s.driver, []
    d.graph_begin(stream)
    try:
        d.host_func(stream, lambda: ran.append(1))
    except Unsupported:
        d.graph_end(stream, abort=True)
        return
    made = d.graph_end(stream)
    run = d.graph_instantiate(made)
    s.quiet(lambda: ran, "a recorded host function ran before its graph was launched")
    d.graph_launch(run, stream)
    sync_within(s, stream, "a stream with a recorded host function")
    require(len(ran) == 1, f"a recorded host function ran {len(ran)} times in one replay; needs once, or Unsupported when it is queued")
    d.graph_destroy(run)
    d.graph_destroy(made)
