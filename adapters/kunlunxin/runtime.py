"""Kunlunxin's two runtimes as tables: XRE (xpu_*), which lacks much, and the newer CUDA-named one (xcudart).

``kunlunxin()`` takes xcudart where it is installed.  XRE has no memset (patterns are copied), no query of a stream (an event
behind its work is asked), no elapsed time and no call that loads an image; a launch is three calls.
"""
from __future__ import annotations

import math
import os
import struct
import threading
import zlib
from typing import Any

from ...hal.driver import Driver, Launch
from ...hal.errors import (
    ArgumentError,
    Busy,
    EnvironmentMissing,
    HaianError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
    Unsupported,
)
from ..engine import CUDA_ERRORS, CUDA_FATAL, Facts, Runtime, TableDriver, cuda_runtime
from ..engine.handles import Slot
from ..engine.library import find

__all__ = ["KunlunxinDriver", "XcudartDriver", "kunlunxin"]

# of XRE's numbers; it carries no call that turns them into text
_TEXTS = {
    701: "invalid device", 702: "not initialised", 703: "no device", 704: "version", 705: "out of device memory", 706: "out of host memory",
    707: "invalid parameter", 708: "no such function", 709: "a library does not load", 710: "a symbol is missing", 711: "simulator", 712: "not supported",
    713: "abnormal", 714: "kernel exception", 715: "timeout", 716: "busy", 717: "used after close", 718: "uncorrectable ECC error", 719: "overheated",
    800: "unexpected", 801: "device reset", 802: "hardware exception", 803: "HBM initialisation", 804: "device initialisation", 805: "peer reset",
    806: "too many devices", 807: "no ioctl", 808: "DMA timeout", 809: "DMA aborted", 810: "MCU not initialised", 811: "old firmware", 812: "PCIe",
    813: "fault", 814: "interrupted", 816: "host memory is registered already"}
_ERRORS: dict[int, type[HaianError]] = {
    701: ArgumentError, 702: EnvironmentMissing, 703: EnvironmentMissing, 704: EnvironmentMissing, 705: OutOfMemory, 706: OutOfMemory, 707: ArgumentError,
    708: ArgumentError, 709: EnvironmentMissing, 710: EnvironmentMissing, 712: Unsupported, 715: Timeout, 716: NotReady, 717: InvalidHandle, 814: Busy,
    816: ArgumentError}
_FATAL = (713, 714, 718, 801, 802, 808, 809, 813)
_MODELS = {0: "K200", 1: "K100", 2: "R200", 3: "R300", 4: "R200-8F", 8: "R420", 9: "RG800"}
_MAIN = 0  # kind of xpu_malloc: HBM
_CORES = 64  # of a cluster
_PATHS = ("$XPURT_TOOLKIT_ROOT/so", "$XPURT_TOOLKIT_ROOT/lib", "/usr/local/xpu/so", "/usr/local/xpu/lib")
_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32")


def _arch(f: Facts) -> int:
    """KL1 0 to 1, KL2 2 to 299, KL3 300 to 599 by model number; TRITON_XPU_ARCH overrides as in the vendor's Triton."""
    said = os.environ.get("TRITON_XPU_ARCH", "")
    model = f.attributes.get("model", 300)
    return int(said) if said.isdigit() else 1 if model < 2 else 2 if model < 300 else 3


XRE = Runtime(
    name="kunlunxin", vendor="Kunlunxin",
    libraries=(("libxpurt.so",),),
    paths=_PATHS,
    visible_devices="XPU_VISIBLE_DEVICES", query_tool="xpu-smi",
    calls={
        "device_count": "xpu_device_count(count)", "set_device": "xpu_set_device(device)", "device_sync": "xpu_wait(0:uintptr_t)",
        "attribute": "xpu_device_get_attr(value_out:size_t *, attribute, cu_device)", "mem_total": "xpu_device_get_attr(total_out, 5:int, cu_device)",
        "malloc": f"xpu_malloc(out, n, {_MAIN}:int)", "free": "xpu_free(ptr)", "host_malloc": "xpu_host_alloc(out, n, 0)", "host_free": "xpu_host_free(ptr)",
        "host_register": "xpu_host_register(ptr, n, 0)", "host_unregister": "xpu_host_unregister(ptr)",
        "copy": "xpu_memcpy(dst, src, n, kind)", "copy_async": "xpu_memcpy_async(dst, src, n, kind, stream)",
        "copy_peer": "xpu_memcpy_peer(dst_device, dst, src_device, src, n)",  # each device before its pointer
        "stream_new": "xpu_stream_create(out)", "stream_destroy": "xpu_stream_destroy(stream)", "stream_sync": "xpu_wait(stream)",
        "stream_wait": "xpu_stream_wait_event(stream, event)",
        "event_new": "xpu_event_create(out)", "event_destroy": "xpu_event_destroy(event)", "event_record": "xpu_event_record(event, stream)",
        "event_query": "xpu_event_query(event)", "event_sync": "xpu_event_wait(event)",
        "argument_set": "xpu_launch_argument_set(packed:void *, size, offset:size_t)", "config": "xpu_launch_config(clusters:int, cores:int, stream)",
        "launch": "xpu_launch_async(function)"},
    own={"argument_set": "packed size offset", "config": "clusters cores stream", "launch": "function"},
    directions={"h2d": 1, "d2h": 0, "d2d": 2},
    not_ready=frozenset({716, -716}),
    errors=_ERRORS | {-k: v for k, v in _ERRORS.items()}, texts=_TEXTS | {-k: v for k, v in _TEXTS.items()},  # some calls answer with the negative number
    fatal=frozenset(_FATAL) | {-c for c in _FATAL},
    attribute_type="size_t",
    attributes={"pci": 0, "model": 4, "clusters": 7},
    # one thread a program, 65536 programs an axis (FlagGems); 256 KiB is what the vendor's Triton says without asking
    defaults={"clusters": 8, "shared": 256 << 10, "grid_x": 65536, "grid_y": 65536, "grid_z": 65536},
    dtypes=_DTYPES,
    target=lambda f: ("xpu", _arch(f), 1),
    arch=lambda f: f"xpu{_arch(f)}",
    formats={"xpubin": ()},
    default_shared=2**31 - 1,
    facts={"warp_size": 1, "multiprocessors": lambda f: f["clusters"], "model": lambda f: _MODELS.get(f.attributes.get("model", -1), f"KL{_arch(f)}")},
    xccl="bkcl",
    unconfirmed={
        "release": "headers of KL1 to KL3; which release brought xpu_event_query, xpu_memcpy_async and the CUDA-named layer is not public",
        "query": "716 is taken for an event that was not reached",
        "total": "attribute 5 is taken to count bytes",
        "sync": "xpu_wait waits for one stream: haian waits for its own, streams of other libraries are not seen",
        "default_stream": "stream 0 is taken to be independent of the others",
        "align": "256 bytes is CUDA's; XRE's is not documented",
        "memory": "the runtime has no memory info: haian's allocator counts",
        "image": "an xpubin is code without a mark and no call loads it: nothing can refuse a bad one",
        "launch": "the kernel's struct and the grid behind its arguments are what public launchers pass; arguments of 8 bytes are aligned to 8",
        "visible_devices": "XPU_VISIBLE_DEVICES comes from a note; FlagGems uses CUDA_VISIBLE_DEVICES"},
)

_XCUDART_PATHS = ("/usr/local/xcudart/lib", "/xcudart/lib")
XCUDART = Runtime(
    name="kunlunxin", vendor="Kunlunxin",
    libraries=(("libcudart.so",), ("libxpurt.so",)),
    paths=_XCUDART_PATHS, only_paths=True,  # elsewhere the name is NVIDIA's
    visible_devices="CUDA_VISIBLE_DEVICES", query_tool="xpu-smi",
    calls=cuda_runtime("cuda"), errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    attributes={"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "shared": 8, "multiprocessors": 16},
    version=lambda v: f"CUDA runtime API {v // 1000}.{v % 1000 // 10} of xcudart",
    dtypes=_DTYPES,
    xccl="bkcl",
    unconfirmed={
        "calls": "FlagCX calls cudaMemsetAsync, cudaStreamQuery, cudaEventElapsedTime and the usual ones; the others are taken from CUDA",
        "numbers": "attributes, flags, directions and errors are CUDA's",
        "modules": "launches go through XRE, whose streams are not known to be these: operators run on the host",
        "graph": "the capture calls were not seen"},
)


class XcudartDriver(TableDriver):
    """Kunlunxin XPUs through the CUDA-named runtime."""

    table = XCUDART


def _counted(name: str) -> Any:
    """A method of TableDriver after which its stream has new work, also for a query between its begin and its end."""
    plain = getattr(TableDriver, name)

    def method(self: KunlunxinDriver, first: int, second: Any, *rest: Any, **named: Any) -> Any:
        stream = named.get("stream", rest[-1] if rest else first if name == "stream_wait_event" else second if name == "event_record" else 0)
        result = plain(self, first, second, *rest, **named)
        self._queued(stream)
        return result

    method.__name__ = name
    method.__doc__ = plain.__doc__
    return method


class KunlunxinDriver(TableDriver):
    """Kunlunxin XPUs through XRE."""

    table = XRE
    event_elapsed_ns = Driver.event_elapsed_ns  # not offered
    host_func = Driver.host_func

    def _clear(self) -> None:
        super()._clear()
        self._work: dict[int, int] = {}  # stream -> token of its latest work
        self._idle: dict[int, int] = {}  # stream -> token up to which it is known to be done
        self._marks: dict[int, tuple[int, int]] = {}  # stream -> (event behind its work, token when that was recorded)
        self._shared: set[int] = set()  # streams whose pointer somebody else has: work may be queued unseen
        self._launching = threading.Lock()

    def offers(self, group: str) -> bool:
        if group in ("stream", "event"):
            self._open()
            return {"stream_new", "stream_sync", "event_new", "event_record", "event_query"} <= set(self._calls)
        if group == "module":
            self._open()
            return {"argument_set", "config", "launch"} <= set(self._calls)
        return super().offers(group)

    def _uuid(self, device: int) -> str:
        pci = self._facts(device).attributes.get("pci", 0)
        return f"{pci:012x}" if pci else ""

    def sync(self, device: int) -> None:
        """Stream by stream, since xpu_wait waits for one: before the engine's, which lets go of what queued copies read."""
        for handle, slot in self._handles.of(device):
            if slot.kind == "stream":
                self.stream_sync(handle)
        super().sync(device)

    # ---- streams -----------------------------------------------------------------------------------------------------------
    def _queued(self, stream: int) -> None:
        if stream:
            self._work[stream] = next(self._tokens)

    def _stream(self, stream: int, device: int = -1) -> int:
        """Everything that queues work asks for the vendor's stream first."""
        pointer = super()._stream(stream, device)
        self._queued(stream)
        return pointer

    copy, fill, launch = _counted("copy"), _counted("fill"), _counted("launch")
    event_record, stream_wait_event = _counted("event_record"), _counted("stream_wait_event")

    def stream_sync(self, stream: int) -> None:
        token = self._work.get(stream, 0)
        super().stream_sync(stream)
        self._idle[stream] = token

    def stream_query(self, stream: int) -> bool:
        """Asks an event behind the stream's latest work, since the runtime has no query for streams."""
        slot, token = self._slot(stream, "stream"), self._work.get(stream, 0)
        if token == self._idle.get(stream, 0) and stream not in self._shared:
            return True
        with self._lock:
            event, at = self._marks.get(stream, (0, -1))
            if at != token:
                if not event:
                    out = self._ffi.new("uintptr_t *")
                    self._check(self._call("event_new")(out), "event_new", slot.device)
                    event = out[0]
                self._check(self._call("event_record")(event, slot.pointer), "event_record", slot.device)
                self._marks[stream] = (event, token)
            done = self._done("event_query", event, slot.device)
            if done and stream in self._shared:  # the next question records anew: True says what held when this one was first asked
                self._marks[stream] = (event, -1)
        if done:
            self._idle[stream] = token
            slot.keep.clear()
        return done

    def native(self, handle: int) -> int:
        if self._handles.kind(handle) == "stream":
            self._shared.add(handle)
        return super().native(handle)

    def adopt_stream(self, device: int, pointer: int) -> int:
        made = super().adopt_stream(device, pointer)
        self._shared.add(made)
        return made

    def stream_destroy(self, stream: int) -> None:
        event, _ = self._marks.pop(stream, (0, 0))
        if event:
            slot = self._slot(stream, "stream")
            self._call("stream_sync")(slot.pointer)
            self._check(self._call("event_destroy")(event), "event_destroy", slot.device)
        super().stream_destroy(stream)
        self._shared.discard(stream)
        for table in (self._work, self._idle):
            table.pop(stream, None)

    # ---- modules: an image is code that the runtime first sees at a launch -------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        if format not in self.table.formats or not self.offers("module"):
            raise Unsupported(f"{self.name}: image format {format!r}; needs {' or '.join(self.table.formats)} and a runtime that launches")
        if not image:
            raise ArgumentError(f"{self.name}: an image of 0 bytes; needs an xpubin")
        self._enter(device)
        slot = Slot("module", device, 0)
        slot.keep = [self._ffi.from_buffer(bytes(image) + bytes(8)), len(image)]
        return self._handles.add(slot)

    def module_unload(self, module: int) -> None:
        slot = self._slot(module, "module")
        self.sync(slot.device)  # queued launches read the code where it lies
        self._handles.pop(module, "module")
        for handle, kernel in self._handles.of(slot.device, module):
            self._handles.pop(handle, kernel.kind)

    def get_kernel(self, module: int, name: str) -> int:
        """An xpubin holds one kernel; whether it has this name nothing can say."""
        slot = self._slot(module, "module")
        code, nbytes = slot.keep
        text = self._ffi.from_buffer(name.encode() + b"\0")
        # type and place (0: a kernel of clusters, code in host memory), address, bytes, first instruction, words of arguments, hash, name, the
        # runtime's own, offset of the printf buffer
        record = self._ffi.from_buffer(bytearray(struct.pack("<I4xQIII4xQQQQ", 0, self._address(code), nbytes, 0, 0, zlib.crc32(self._ffi.buffer(code)),
                                                             self._address(text), 0, 0)))
        made = Slot("kernel", slot.device, self._address(record), parent=module, name=name)
        made.keep = [code, text, record]
        return self._handles.add(made)

    def _address(self, data: Any) -> int:
        return int(self._ffi.cast("uintptr_t", self._ffi.cast("void *", data)))

    def _run_kernel(self, device: int, slot: Slot, desc: Launch, params: Any, stream: int) -> None:
        """Arguments one by one, the grid behind them, then the shape of the chip, then the kernel."""
        programs, most = math.prod(desc.grid), self._facts(device)["clusters"]
        limit = self.props(device)
        if min(desc.grid) < 1 or any(g > m for g, m in zip(desc.grid, limit.max_grid)) or desc.threads > limit.max_threads:
            raise ArgumentError(f"{self.name}: grid {desc.grid} with {desc.threads} threads; needs 1 to {limit.max_grid} and at most {limit.max_threads}")
        wide = _arch(self._facts(device)) >= 3
        packed = bytes(self._ffi.buffer(self._ffi.cast("char *", params[0]), 8 * len(desc.args))) if desc.args else b""
        values, offset = [], 0
        for i, (kind, _) in enumerate(desc.args):
            size = 8 if kind[0] == "*" or kind in ("i64", "u64", "fp64") else 4
            offset += -offset % (8 if wide and size == 8 else 4)
            values.append((packed[8 * i : 8 * i + size], offset))
            offset += size
        values += [(struct.pack("<I", g), offset + 4 * i) for i, g in enumerate(desc.grid)]
        with self._launching:  # nobody says whose state the three calls share
            for value, at in values:
                self._check(self._call("argument_set")(self._ffi.from_buffer(value), len(value), at), "argument_set", device, f" of {slot.name!r}")
            self._check(self._call("config")(min(programs, most), _CORES, stream), "config", device, f" of {slot.name!r}")
            self._check(self._call("launch")(slot.pointer), "launch", device, f" of {slot.name!r}")


def kunlunxin() -> Driver:
    """The driver of the runtime that is installed; XRE's where none is."""
    return XcudartDriver() if find(XCUDART).paths else KunlunxinDriver()
