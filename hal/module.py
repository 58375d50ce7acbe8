"""Module (a loaded binary), Kernel (a function in it), launched through the driver, and Graph (recorded work, replayed).

The cold way in; operators launch from native code with the same records.
Not here: compiling (kernels/triton), which kernel an operator takes (dispatch).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from .device import Device
from .driver import Launch, offers
from .errors import ArgumentError, InvalidHandle, Unsupported, wrong_type
from .memory import Buffer, buffer_of, use
from .stream import Recording, Stream

__all__ = ["Graph", "Kernel", "Module"]


class Module:
    """``Module(device, image, format)``: a binary loaded on a device.

    Args:
        image: the bytes.
        format: what they are, by default ``Capabilities.image_format`` (``"ttir"``, ``"cubin"``, ...).

    Raises:
        Unsupported: the device loads no modules, or not this format.  ArgumentError: the driver refuses the image.
    """

    def __init__(self, device: Device, image: bytes, format: str = "") -> None:
        self._handle = 0
        _device("Module", device)
        self.device = device
        self.format = format or device.capabilities.image_format
        if not self.format:
            raise Unsupported(f"{device.name}: loads no modules; operators use the host's kernels")
        if not isinstance(self.format, str):
            raise wrong_type(f"{device.name}: Module format", format, "a name such as Capabilities.image_format")
        try:
            data = bytes(memoryview(image))  # bytes(3) would be three zeros
        except TypeError:
            raise wrong_type(f"{device.name}: Module image", image, "bytes") from None
        device._run(device._unloads)
        self._handle = device.driver.module_load(device.index, data, self.format)

    def __repr__(self) -> str:
        return f"<haian module {self._handle:#x} ({self.format}) on {self.device.name}{'' if self._handle else ', unloaded'}>"

    @property
    def handle(self) -> int:
        """The driver's number.

        Raises:
            InvalidHandle: unloaded.
        """
        if not self._handle:
            raise InvalidHandle(f"{self!r}: load it again")
        return self._handle

    def kernel(self, name: str) -> Kernel:
        """The function ``name``.

        Raises:
            ArgumentError, EnvironmentMissing: as the driver says, when there is none.
        """
        return Kernel(self, name)

    def unload(self) -> None:
        """Waits for the device, then drops the binary; a second call is a no-op."""
        handle, self._handle = self._handle, 0
        if handle:
            self.device.driver.sync(self.device.index)
            self.device.driver.module_unload(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):  # the finaliser may run inside a driver's lock
            self.device._unloads.append(partial(_unload, self.device, self._handle))


def _device(what: str, device: object) -> None:
    if not isinstance(device, Device):
        raise wrong_type(what, device, "a device, haian.device(...)")


def _stream(what: str, stream: object, device: Device) -> None:
    """Refuses what is no live stream of the device."""
    if not isinstance(stream, Stream):
        raise wrong_type(what, stream, f"a stream of {device.name}")
    stream._check()
    if stream.device != device:
        raise ArgumentError(f"{what}: stream of {stream.device.name}; needs one of {device.name}")


def _unload(device: Device, handle: int) -> None:
    device.driver.sync(device.index)  # a queued launch may still read the binary
    device.driver.module_unload(handle)


class Kernel:
    """A function of a module; keeps the module loaded.  Made by ``Module.kernel``."""

    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self.handle = module.device.driver.get_kernel(module.handle, name)

    def __repr__(self) -> str:
        return f"<haian kernel {self.name} on {self.module.device.name}>"

    def launch(self, grid: int | Sequence[int], args: Sequence[Any], threads: int = 128, shared_bytes: int = 0,
               stream: Stream | None = None, cluster: tuple[int, int, int] = (1, 1, 1)) -> None:
        """Queues one launch.

        Args:
            grid: programs along x, y, z; missing ones are 1.
            args: Tensors and Buffers (their address and use are taken), or (type, value) pairs in Triton's names:
                ``("i32", 7)``, ``("fp32", 0.5)``, ``("*fp32", address or Tensor or Buffer)``.
            threads: per program.
            shared_bytes: dynamic shared memory per program.
            stream: by default the device's current one.

        Raises:
            ArgumentError: a grid, threads or shared memory beyond the device's limits, or a tensor of another device.
            InvalidHandle: an unloaded module, a freed buffer.
        """
        device = self.module.device
        _ = self.module.handle  # raises for an unloaded module, whose kernels are gone
        facts = device.capabilities
        stream = device.current_stream if stream is None else stream
        _stream(self.name, stream, device)
        sizes = (grid,) if isinstance(grid, int) else tuple(grid)
        if not 1 <= len(sizes) <= 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise ArgumentError(f"{self.name}: grid {grid!r}; needs 1 to 3 sizes of at least 1 (launch nothing for zero elements)")
        x, y, z = (*sizes, 1, 1)[:3]
        if any(n > most for n, most in zip((x, y, z), facts.max_grid)) or x * y * z > facts.max_grid_product:
            raise ArgumentError(f"{self.name}: grid {(x, y, z)}; {device.name} takes {facts.max_grid} and {facts.max_grid_product} programs "
                                f"in all, loop in the kernel")
        if not 1 <= threads <= facts.max_threads:
            raise ArgumentError(f"{self.name}: {threads} threads; {device.name} takes 1 to {facts.max_threads}")
        if not 0 <= shared_bytes <= facts.max_shared_bytes:
            raise ArgumentError(f"{self.name}: {shared_bytes} bytes of shared memory; {device.name} has {facts.max_shared_bytes}")
        packed: list[tuple[str, int | float]] = []
        buffers: list[Buffer] = []
        for i, arg in enumerate(args):
            packed.append(self._argument(i, arg, buffers))
        use(stream, writes=buffers)  # which of them the kernel only reads, nothing here says
        device.driver.launch(device.index, Launch(self.handle, (x, y, z), threads, shared_bytes, packed, cluster), stream.handle)

    def _argument(self, i: int, arg: Any, buffers: list[Buffer]) -> tuple[str, int | float]:
        """One argument as (type, value); notes the buffers it uses."""
        from .tensor import Tensor
        kind, value = arg if isinstance(arg, tuple) else ("", arg)
        if isinstance(value, Tensor):
            if value.device_index != self.module.device.position:
                raise ArgumentError(f"{self.name}: argument {i} is on {value.device.name}; needs {self.module.device.name}, use .to()")
            buffer = buffer_of(value)
            if buffer is not None:
                buffers.append(buffer)
            return kind or f"*{value.dtype.triton}", value.address
        if isinstance(value, Buffer):
            if value.device != self.module.device or not value.alive:
                raise ArgumentError(f"{self.name}: argument {i} is {value!r}; needs a live one of {self.module.device.name}")
            buffers.append(value)
            return kind or "*u8", value.address
        if not kind or not isinstance(value, (int, float)):
            raise ArgumentError(f"{self.name}: argument {i} is {arg!r}; needs a Tensor, a Buffer or a (type, value) pair such as ('i32', 7)")
        return kind, value


class Graph:
    """Work recorded once and replayed at the cost of one call; made by ``Graph.capture``.

        with Graph.capture(stream) as graph:      # nothing runs; the stream is the current one
            kernel.launch(...)
        graph.launch(stream)

    Recorded are copies, fills, launches, host functions, and records and waits of events on the captured stream.  A replay reads
    and writes the memory of the recording, which lives as long as the graph; put new input there.

    Attributes:
        device: the device.
    """

    def __init__(self, device: Device) -> None:
        self._handle = self._executable = 0
        _device("Graph", device)
        self.device = device
        self._uses = Recording()

    @classmethod
    @contextmanager
    def capture(cls, stream: Stream) -> Iterator[Graph]:
        """Records what is queued on the stream in the block; an exception in it drops the recording.

        The stream refuses ``synchronize`` and ``query`` meanwhile, so what waits for a result does not fit in a graph.

        Raises:
            Unsupported: the driver has no graphs.  ArgumentError: the default stream, or a device without streams.
        """
        if not isinstance(stream, Stream):
            raise wrong_type("Graph.capture", stream, "a stream of device.stream()")
        device = stream.device
        stream._check()
        if not offers(device.driver, "graph"):
            raise Unsupported(f"{device.name}: records no graphs; queue the work again instead")
        if stream.synchronous:
            raise ArgumentError(f"{stream!r}: work runs at once here; record on a stream of device.stream()")
        made = cls(device)
        device.driver.graph_begin(stream.handle)
        stream._recording = made._uses
        try:
            with stream:
                yield made
        except BaseException:
            stream._recording = None
            device.driver.graph_end(stream.handle, abort=True)
            raise
        stream._recording = None
        made._handle = device.driver.graph_end(stream.handle)

    def __repr__(self) -> str:
        return f"<haian graph {self._handle:#x} on {self.device.name}{'' if self._handle else ', not alive'}>"

    def instantiate(self) -> Graph:
        """Prepares the replay, which the first ``launch`` does otherwise; returns the graph itself."""
        if not self._handle:
            raise InvalidHandle(f"{self!r}: it is still being recorded, or closed; record it again")
        if not self._executable:
            self._executable = self.device.driver.graph_instantiate(self._handle)
        return self

    def launch(self, stream: Stream | None = None) -> None:
        """Queues one replay, in order with everything queued on its memory.

        Args:
            stream: of the graph's device, by default its current one.

        Raises:
            InvalidHandle: a closed graph, or one whose recording has not ended.  ArgumentError: another device's stream.
        """
        stream = self.device.current_stream if stream is None else stream
        _stream(repr(self), stream, self.device)
        self.instantiate()
        use(stream, self._uses.reads, self._uses.writes)
        self.device.driver.graph_launch(self._executable, stream.handle)
        if self._uses.held:
            stream.hold(*self._uses.held)

    def close(self) -> None:
        """Drops the recording; replays already queued still run.  A second call is a no-op."""
        handles = self._executable, self._handle
        self._executable = self._handle = 0
        for handle in filter(None, handles):
            self.device.driver.graph_destroy(handle)
        self._uses = Recording()

    def __del__(self) -> None:
        for handle in filter(None, (getattr(self, "_executable", 0), getattr(self, "_handle", 0))):
            self.device._later.append(partial(self.device.driver.graph_destroy, handle))
