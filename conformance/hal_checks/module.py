"""Checks 66 and 67: modules, launches and graphs, with the kernels of images.py."""
from __future__ import annotations

from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, Copy, Launch
from ...hal.errors import ArgumentError, Busy, EnvironmentMissing, HaianError, InternalError, InvalidHandle, Unsupported
from .check import NotOffered, Subject, check, require
from .images import image_of
from .stream import holds, start, sync_within

_BAD_IMAGE = (ArgumentError, Unsupported, EnvironmentMissing, InternalError)
_REPLAYS = 100


class Axpy:
    """conform_axpy loaded on the device, with x and y of ``n`` small integers, so that every result is exact."""

    def __init__(self, s: Subject, n: int = 37) -> None:
        self.s, self.n = s, n
        self.image = image_of(s.caps, s.offers("module"))
        self.module = s.driver.module_load(s.device, self.image.data, self.image.format)
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
        self.expected = self.expected + np.float32(a * times) * self.host_x

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
    sizes.append(good._replace(threads=s.caps.max_threads + 1))
    for desc in sizes:
        s.expect((ArgumentError, Unsupported), d.launch, device, desc, stream)
    if s.offers("kernel_info"):
        info = d.kernel_info(work.kernel)
        require(info.max_threads == -1 or info.max_threads >= 1, f"kernel_info says max_threads {info.max_threads}; needs 1 or more, or -1")
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
    work.launch(stream, 3.0)
    if stream:
        sync_within(s, stream, "a stream with a launch")
    d.sync(device)
    work.check("a launch after refused ones")

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
            work.launch(stream, 5.0)
            ended = start(s, lambda: _unload(work))
            s.quiet(lambda: ended() and False, "")
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
