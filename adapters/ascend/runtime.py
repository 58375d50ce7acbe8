"""Huawei's AscendCL as a table, with what is not of CUDA's shape: callbacks on threads of ours, packed kernel arguments, peers.

Names, argument order and numbers are those of the public headers that PyTorch's NPU plugin ships (CANN 8.5 to 9.1).
"""
from __future__ import annotations

import atexit
import collections
import math
import re
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...hal.driver import PEER, Launch
from ...hal.errors import ArgumentError, EnvironmentMissing, InvalidHandle, NotReady, OutOfMemory, Timeout, Unsupported
from ..engine import Facts, Runtime, TableDriver
from ..engine.handles import Slot

__all__ = ["AscendDriver"]

_PATHS = ("$ASCEND_HOME_PATH/lib64", "$ASCEND_TOOLKIT_HOME/lib64", "/usr/local/Ascend/ascend-toolkit/latest/lib64", "/usr/local/Ascend/cann/lib64")
_DDR, _HBM = 0, 1  # aclrtMemAttr
_HUGE_FIRST = 0  # aclrtMemMallocPolicy
_SYNC, _TIMED = 1, 8  # event flags; without 8 an event has no time
_THREAD_LOCAL = 1  # capture: other threads' calls stay legal
_BLOCKING = 1  # the stream waits for its callback
_REPORT_MS = 10  # a callback thread looks this often whether its stream is gone
_MAX_BLOCKS = 65535  # programs of a launch, x * y * z
_BYTES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "fp16": 4, "bf16": 4, "fp32": 4, "fp64": 8}

TABLE = Runtime(
    name="ascend", vendor="Huawei",
    libraries=(("libascendcl.so",),),
    paths=_PATHS,
    visible_devices="ASCEND_RT_VISIBLE_DEVICES", query_tool="npu-smi",
    calls={
        "init": "aclInit(0:uintptr_t)", "error_text": "text aclGetRecentErrMsg()",
        "device_count": "aclrtGetDeviceCount(count)", "set_device": "aclrtSetDevice(device)", "device_sync": "aclrtSynchronizeDevice()",
        "soc": "text aclrtGetSocName()", "attribute": "aclrtGetDeviceInfo(cu_device:unsigned, attribute, value_out:int64_t *)",
        "uuid": "aclrtDeviceGetUuid(cu_device, text)", "mem_info": f"aclrtGetMemInfo({_HBM}:int, free_out, total_out)",
        "mem_info_ddr": f"aclrtGetMemInfo({_DDR}:int, free_out, total_out)",
        "malloc": f"aclrtMalloc(out, n, {_HUGE_FIRST}:int)", "free": "aclrtFree(ptr)",
        "host_malloc": "aclrtMallocHost(out, n)", "host_free": "aclrtFreeHost(ptr)",
        # the capacity of dst comes second; the value of a memset third
        "copy": "aclrtMemcpy(dst, n, src, n, kind)", "copy_async": "aclrtMemcpyAsync(dst, n, src, n, kind, stream)",
        "copy_peer": "aclrtMemcpyAsync(dst, n, src, n, 3:int, stream)", "enable_peer": "aclrtDeviceEnablePeerAccess(device, 0)",
        "memset": "aclrtMemset(ptr, n, value, n)", "memset_async": "aclrtMemsetAsync(ptr, n, value, n, stream)",
        "stream_new": "aclrtCreateStream(out)", "stream_destroy": "aclrtDestroyStream(stream)", "stream_sync": "aclrtSynchronizeStream(stream)",
        "stream_query": "aclrtStreamQuery(stream, status)", "stream_wait": "aclrtStreamWaitEvent(stream, event)",
        "host_func": f"aclrtLaunchCallback(fn, user, {_BLOCKING}:int, stream)", "subscribe": "aclrtSubscribeReport(thread:uint64_t, stream)",
        "unsubscribe": "aclrtUnSubscribeReport(thread:uint64_t, stream)", "report": "aclrtProcessReport(timeout:int)",
        # events made with Ex may be recorded again; older CANN has them without
        "event_new": f"aclrtCreateEventExWithFlag|aclrtCreateEventWithFlag(out, {_TIMED})",
        "event_new_untimed": f"aclrtCreateEventExWithFlag|aclrtCreateEventWithFlag(out, {_SYNC})",
        "event_destroy": "aclrtDestroyEvent(event)", "event_record": "aclrtRecordEvent(event, stream)",
        "event_query": "aclrtQueryEventStatus(event, status)", "event_sync": "aclrtSynchronizeEvent(event)",
        "elapsed": "aclrtEventElapsedTime(ms, start, end)",
        "module_load": "aclrtBinaryLoadFromData(image, size, 0:uintptr_t, out)", "module_unload": "aclrtBinaryUnLoad(module)",
        "module_function": "aclrtBinaryGetFunction(module, name, out)", "sync_address": "aclrtGetHardwareSyncAddr(out)",
        # what a capture gives can be run as it is
        "capture_begin": f"aclmdlRICaptureBegin(stream, {_THREAD_LOCAL}:int)", "capture_end": "aclmdlRICaptureEnd(stream, out)",
        "graph_launch": "aclmdlRIExecuteAsync(exec, stream)", "graph_destroy": "aclmdlRIDestroy(graph)",
        "launch": "aclrtLaunchKernelWithHostArgs(function, blocks:unsigned, stream, 0:uintptr_t, packed:void *, size, 0:uintptr_t, 0:size_t)"},
    own={"soc": "", "mem_info_ddr": "free_out total_out", "enable_peer": "device", "subscribe": "thread stream", "unsubscribe": "thread stream", "report": "timeout", "sync_address": "out",
         "launch": "function blocks stream packed size"},
    together=(("host_func", "subscribe", "unsubscribe", "report"),),
    ready_status={"stream_query": 0, "event_query": 1},  # the two enums are each other's opposite
    not_ready=frozenset({507006}),
    errors={100000: ArgumentError, 100001: EnvironmentMissing, 100002: EnvironmentMissing, 100029: ArgumentError, 107000: ArgumentError, 107001: ArgumentError,
            107002: InvalidHandle, 200000: OutOfMemory, 207000: Unsupported, 207001: OutOfMemory, 207004: EnvironmentMissing, 300000: OutOfMemory,
            507006: NotReady, 107020: Timeout},
    fatal=frozenset({507014, 507015, 507018, 507035, 507899}),
    texts={100000: "invalid parameter", 100001: "aclInit was not called", 100002: "initialised already", 100029: "kernel not found",
           107000: "invalid parameter", 107001: "invalid device", 107002: "no context on this thread", 207001: "out of device memory",
           207004: "no device", 507006: "event not complete", 507014: "AI core timeout", 507015: "AI core exception",
           507035: "vector core exception"},
    ignore=frozenset({100002}),
    attribute_type="int64_t",
    attributes={"multiprocessors": 101, "vector_cores": 201, "unified_bytes": 204, "max_threads": 209},
    defaults={"multiprocessors": 20, "unified_bytes": 192 << 10, "grid_x": _MAX_BLOCKS, "grid_y": _MAX_BLOCKS, "grid_z": _MAX_BLOCKS},
    align=64,
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    target=lambda f: ("npu", f.text, 0),
    arch=lambda f: f.text,
    formats={"npubin": (b"\x7fELF",)},
    default_shared=2**31 - 1,
    max_grid_product=_MAX_BLOCKS,
    facts={"max_shared_bytes": lambda f: f["unified_bytes"]},
    xccl="hccl",
    unconfirmed={
        "size 0": "aclrtMalloc of 0 bytes is an error according to its reference; haian never asks for it",
        "align": "64 bytes is what CANN's guide promises; the header does not say",
        "memory": "aclrtGetMemInfo is asked for HBM, and for DDR where that is 0",
        "copies": "any host memory is given to aclrtMemcpyAsync; CANN's guide asks for memory of aclrtMallocHost",
        "errors": "numbers above 107002 other than 207001, 207004 and 507006 were not read in a header",
        "handles": "the code for a dead stream or event was not read: 107000 is taken",
        "launch": "arguments as triton-ascend packs them: sync address (but on Ascend950), lock, workspace, arguments, grid, debug; kernels that ask for a "
                  "workspace or locks get none",
        "default_stream": "stream 0 is taken to be independent of the others",
        "graph": "the capture calls are in the header; which work may be captured is not said there"},
)


class _Listener:
    """The thread on which one stream's callbacks run: AscendCL calls them from inside aclrtProcessReport only."""

    def __init__(self, driver: AscendDriver, slot: Slot) -> None:
        self.driver, self.slot, self.going = driver, slot, True
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, name="haian-ascend-callbacks", daemon=True)
        self.thread.start()
        self.ready.wait()
        code = driver._call("subscribe")(self.thread.ident, slot.pointer)
        if code != driver.table.success:
            self.end()
            raise driver._error(code, "subscribe", slot.device)

    def run(self) -> None:
        self.ready.set()
        report = self.driver._call("report")
        self.driver._call("set_device")(self.slot.device)
        while self.going:
            report(_REPORT_MS)  # a timeout is the usual answer

    def end(self) -> None:
        self.going = False
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def stop(self) -> None:
        self.end()
        self.driver._call("unsubscribe")(self.thread.ident, self.slot.pointer)


_drivers: weakref.WeakSet[AscendDriver] = weakref.WeakSet()


@atexit.register
def _end_listeners() -> None:
    """No thread of ours is inside the library when the process takes it down."""
    for driver in list(_drivers):
        for listener in list(driver._listeners.values()):
            if not driver._forked:  # a child has none of its parent's threads
                listener.end()


class AscendDriver(TableDriver):
    """Ascend NPUs.

    ``fini`` leaves AscendCL itself running: aclInit does not work again after aclFinalize, and other libraries of the process
    use it too.
    """

    table = TABLE

    def _clear(self) -> None:
        super()._clear()
        _drivers.add(self)
        self._listeners: dict[int, _Listener] = {}
        self._peers: set[tuple[int, int]] = set()
        self._models: collections.Counter[int] = collections.Counter()  # handles on a recording, by its pointer
        self._sync_addresses: dict[int, int] = {}

    def _facts(self, device: int) -> Facts:
        if device not in self._facts_of:
            facts = super()._facts(device)
            said = self._calls["soc"]() if "soc" in self._calls else self._ffi.NULL
            soc = self._ffi.string(said).decode() if said != self._ffi.NULL else ""
            self._facts_of[device] = replace(facts, model=soc or facts.model, text=soc)
        return self._facts_of[device]

    def mem_info(self, device: int) -> tuple[int, int]:
        """Of HBM; chips that have DDR instead (310P) answer to the other attribute."""
        free, total = super().mem_info(device)
        if not total and "mem_info_ddr" in self._calls:
            f, t = self._ffi.new("size_t *"), self._ffi.new("size_t *")
            self._check(self._calls["mem_info_ddr"](f, t), "mem_info_ddr", device)
            free, total = f[0], t[0]
        return free, total

    def _total(self, device: int) -> int:
        return self.mem_info(device)[1] if "mem_info" in self._calls else 0

    def _copy_row(self, device: int, kind: str, dst: int, src: int, nbytes: int, pointer: int, dst_device: int) -> None:
        """A copy between devices is an ordinary one once both may see each other."""
        if kind == PEER and dst_device != device:
            for here, there in ((dst_device, device), (device, dst_device)):
                if (here, there) not in self._peers:
                    self._enter(here)
                    self._check(self._call("enable_peer")(there), "enable_peer", here)
                    self._peers.add((here, there))
            self._enter(device)
        super()._copy_row(device, kind, dst, src, nbytes, pointer, dst_device)

    # ---- callbacks -------------------------------------------------------------------------------------------------------
    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if not stream:  # synchronous: everything before it has happened once this returns
            self.stream_sync(0)
            fn()
            return
        slot = self._slot(stream, "stream")
        with self._lock:
            if stream not in self._listeners:
                self._listeners[stream] = _Listener(self, slot)
        super().host_func(stream, fn)

    def stream_destroy(self, stream: int) -> None:
        listener = self._listeners.get(stream)
        if listener is not None:
            slot = self._handles.get(stream, "stream")
            self._call("stream_sync")(slot.pointer)  # its callbacks have run
            del self._listeners[stream]
            listener.stop()
        super().stream_destroy(stream)

    def reset(self, device: int) -> None:
        super().reset(device)
        for stream in [s for s in self._listeners if not self._handles.kind(s)]:  # of a lost device
            self._listeners.pop(stream).stop()

    # ---- graphs: a recording is its own executable -------------------------------------------------------------------------
    def offers(self, group: str) -> bool:
        if group == "graph":
            self._open()
            return {"capture_begin", "capture_end", "graph_launch", "graph_destroy"} <= set(self._calls)
        return super().offers(group)

    def graph_end(self, stream: int, abort: bool = False) -> int:
        made = super().graph_end(stream, abort)
        if made:
            self._models[self._handles.get(made, "graph").pointer] += 1
        return made

    def graph_instantiate(self, graph: int) -> int:
        slot = self._slot(graph, "graph")
        self._models[slot.pointer] += 1
        return self._handles.add(Slot("executable", slot.device, slot.pointer))

    def graph_destroy(self, graph: int) -> None:
        slot = self._handles.pop(graph, "executable" if self._handles.kind(graph) == "executable" else "graph")
        self._models[slot.pointer] -= 1
        if not self._models[slot.pointer]:
            del self._models[slot.pointer]
            self._enter(slot.device)
            self._check(self._call("graph_destroy")(slot.pointer), "graph_destroy", slot.device)

    # ---- launch ----------------------------------------------------------------------------------------------------------
    def _run_kernel(self, device: int, slot: Slot, desc: Launch, params: Any, stream: int) -> None:
        """One-dimensional blocks; one struct of arguments, which the kernel finds its grid in."""
        blocks, limit = math.prod(desc.grid), self.props(device).max_threads
        if min(desc.grid) < 1 or blocks > _MAX_BLOCKS or desc.threads > limit:
            raise ArgumentError(f"{self.name}: grid {desc.grid} with {desc.threads} threads; a launch takes 1 to {_MAX_BLOCKS} programs in all and {limit} threads")
        packed = bytes(self._ffi.buffer(self._ffi.cast("char *", params[0]), 8 * len(desc.args))) if desc.args else b""
        whole = bytearray()
        if not re.match(r"Ascend(950|910_95)", self._facts(device).text):
            whole += struct.pack("<Q", self._sync_address(device))
        whole += bytes(16)  # lock, workspace
        for i, (kind, _) in enumerate(desc.args):
            size = 8 if kind[0] == "*" else _BYTES[kind]
            whole += bytes(-len(whole) % (8 if size == 8 else 4)) + packed[8 * i : 8 * i + size]
        whole += bytes(-len(whole) % 4) + struct.pack("<3i", *desc.grid)
        whole += bytes(-len(whole) % 8) + bytes(8)  # debug
        self._check(self._call("launch")(slot.pointer, blocks, stream, self._ffi.from_buffer(whole), len(whole)), "launch", device, f" of {slot.name!r}")

    def _sync_address(self, device: int) -> int:
        if device not in self._sync_addresses:
            out = self._ffi.new("uintptr_t *")
            with_it = self._calls.get("sync_address")
            if with_it is not None:
                self._check(with_it(out), "sync_address", device)
            self._sync_addresses[device] = out[0]
        return self._sync_addresses[device]
