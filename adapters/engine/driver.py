"""TableDriver: the Driver that runs any vendor's table (table.py).

Vendors whose runtime is not of CUDA's shape subclass this and override what differs.  Opening, errors and handles: core.py.
"""
from __future__ import annotations

import re
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...hal.driver import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    PEER,
    Capabilities,
    Copy,
    KernelInfo,
    Launch,
    PointerInfo,
)
from ...hal.errors import (
    ArgumentError,
    DeviceLost,
    HaianError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
    Unsupported,
)
from .core import Core
from .handles import Slot
from .table import Facts

__all__ = ["TableDriver"]

# A kernel argument in an 8-byte slot, by Triton's type name; addresses are "*...".
_PACK = {"i1": "b7x", "i8": "b7x", "u8": "B7x", "i16": "h6x", "u16": "H6x", "i32": "i4x", "u32": "I4x", "i64": "q", "u64": "Q", "fp32": "f4x", "fp64": "d",
         "u1": "B7x"}
_KERNEL_ATTRIBUTES = {"max_threads": 0, "shared_bytes": 1, "local_bytes": 3, "registers": 4}
_PCI = re.compile(rb"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_PROPERTIES_BYTES = 8192  # more than any known properties struct (HIP 6: 1472)
_SEED_BYTES = 64 << 10  # a pattern the runtime cannot fill is copied once this large, then doubled on the device
_POLL_S = 50e-6


def _overlap(desc: Copy, rows: int, nbytes: int) -> bool:
    """Whether a row that is written shares a byte with one that is read; both lists go upwards, so one walk sees all pairs."""
    i = j = 0
    while i < rows and j < rows:
        dst, src = desc.dst + i * desc.dst_pitch, desc.src + j * desc.src_pitch
        if abs(dst - src) < nbytes:
            return True
        i, j = (i + 1, j) if dst < src else (i, j + 1)
    return False


class TableDriver(Core):
    """Devices of the vendor that ``table`` describes.

    Args:
        library: paths to open instead of looking for them, for tests against stand-ins.

    Attributes:
        looked: every file or folder that was looked at.
        missing: symbols of the table that the library does not have.
        unconfirmed: what in the table no public source settles, by subject.
        why_none: why there is no device; "" when there is one.

    The current device of a thread is set once and remembered.  Who lets another library change it on the same thread calls
    ``forget_current`` before coming back.
    """

    # ---- core ----------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        self._open()
        return self._count

    def _facts(self, device: int) -> Facts:
        """Everything the runtime says of a device; asked once."""
        if device in self._facts_of:
            return self._facts_of[device]
        self._enter(device)
        number, value, buffer = self._ordinal(device), self._ffi.new(f"{self.table.attribute_type} *"), self._ffi.new("char[]", _PROPERTIES_BYTES)
        attributes = dict(self.table.defaults)
        for name, attribute in self.table.attributes.items():
            if "attribute" in self._calls and self._calls["attribute"](value, attribute, number) == self.table.success:
                attributes[name] = value[0]
        model = words = ""
        if "device_name" in self._calls:
            self._check(self._calls["device_name"](buffer, 256, number), "device_name", device)
            model = self._ffi.string(buffer).decode(errors="replace")
        elif "properties" in self._calls:
            self._check(self._calls["properties"](buffer, device), "properties", device)
            model = self._ffi.string(buffer).decode(errors="replace")  # every struct of this family begins with name[256]
            words = " ".join(w.decode() for w in re.findall(rb"[ -~]{3,}", bytes(self._ffi.buffer(buffer))))
        self._facts_of[device] = Facts(device, model or self.vendor, words, self._total(device), attributes)
        return self._facts_of[device]

    def _total(self, device: int) -> int:
        """Bytes of the device's memory."""
        total, free = self._ffi.new("size_t *"), self._ffi.new("size_t *")
        if "mem_total" in self._calls:
            self._check(self._calls["mem_total"](total, self._ordinal(device)), "mem_total", device)
        elif "mem_info" in self._calls:
            self._check(self._calls["mem_info"](free, total), "mem_info", device)
        return total[0] or self.table.defaults.get("total_bytes", 0)

    def _uuid(self, device: int) -> str:
        text = self._ffi.new("char[64]")
        if "uuid" not in self._calls or self._calls["uuid"](text, 64, self._ordinal(device)) != self.table.success:
            return ""
        raw = bytes(self._ffi.buffer(text))
        pci = _PCI.match(raw)
        return pci[0].decode() if pci else raw[:16].hex()

    def props(self, device: int) -> Capabilities:
        if device in self._props:
            return self._props[device]
        table, facts = self.table, self._facts(device)
        get = facts.attributes.get
        offered = {g: self.offers(g) for g in ("stream", "event", "module")}
        more = table.more_dtypes(facts) if table.more_dtypes else ()
        extra: dict[str, object] = {"visible_devices": table.visible_devices, "query_tool": table.query_tool, "library": self.library_path,
                                    "unconfirmed": "; ".join(f"{k}: {v}" for k, v in self.unconfirmed.items())}
        if self.stand_in:
            extra["stand-in"] = self.stand_in
        if facts.capability:
            extra["compute_capability"] = facts.capability
        asynchronous = offered["stream"] and ("copy_async" in self._calls or "copy_h2d" in self._calls)
        made = {
            "model": facts.model, "total_bytes": facts.total_bytes, "max_alloc_bytes": facts.total_bytes, "align_bytes": table.align,
            "async_copy": asynchronous, "streams": offered["stream"], "events": offered["event"], "event_unit_ns": 1000, "memmove": False,
            "dtypes_load": table.dtypes + more, "dtypes_math": table.dtypes if table.dtypes_math is None else table.dtypes_math,
            "triton_target": table.target(facts) if table.target and offered["module"] else None,
            "image_format": next(iter(table.formats), "") if offered["module"] else "", "max_grid_product": table.max_grid_product,
            "max_grid": (get("grid_x", 2**31 - 1), get("grid_y", 65535), get("grid_z", 65535)), "max_threads": get("max_threads", 1024),
            "max_shared_bytes": get("shared", 0), "multiprocessors": get("multiprocessors", 1), "vendor": table.vendor,
            "arch": table.arch(facts) if table.arch else "", "uuid": self._uuid(device), "driver_version": self.version,
            "warp_size": get("warp", 0), "peer": "copy_peer" in self._calls, "cross_device_events": True, "fatal_errors": offered["module"],
            "int64_math": "int64" in (table.dtypes if table.dtypes_math is None else table.dtypes_math), "extra": extra}
        made.update({k: v(facts) if callable(v) else v for k, v in table.facts.items() if k != "extra"})
        extra.update(table.facts.get("extra", {}))  # type: ignore[call-overload]
        if self.remark:  # whoever reads a model or a report sees that it may be no chip of the vendor's
            made |= {k: f"{made[k]} ({self.remark})" for k in ("model", "vendor") if self.remark not in str(made[k])}
        self._props[device] = Capabilities(**made)  # type: ignore[arg-type]
        return self._props[device]

    def sync(self, device: int) -> None:
        self._enter(device)
        self._check(self._calls["device_sync"](), "device_sync", device)
        for _, slot in self._handles.of(device):
            slot.keep.clear()

    def reset(self, device: int) -> None:
        """Drops what this driver made.  Only a lost device is reset as a whole, since other libraries of the process share it.

        Raises:
            DeviceLost: it was lost, and the runtime cannot bring it back in this process.
        """
        self._open()
        if self._forked or not 0 <= device < self._count:
            self._enter(device)  # raises what is wrong
        lost = self._lost.get(device)
        if lost and "device_reset" not in self._calls:
            raise DeviceLost(f"{lost}; contexts of this runtime do not recover, start a new process")
        if lost:
            self._make_current_unchecked(device)
            self._check(self._calls["device_reset"](), "device_reset", device)
            self._lost.pop(device, None)
            for handle, slot in self._handles.of(device):
                self._handles.pop(handle, slot.kind)
            self._memory = {a: m for a, m in self._memory.items() if m[3] != device}
            self._local = threading.local()
        else:
            self._enter(device)
            self._release(device)

    def _make_current_unchecked(self, device: int) -> None:
        if "set_device" in self._calls:
            self._calls["set_device"](device)

    def _release(self, device: int) -> None:
        """Destroys every object and allocation of a device."""
        self._enter(device)
        with suppress(HaianError):  # an asynchronous error is about work that is being dropped
            self.sync(device)
        destroy = {"stream": self.stream_destroy, "event": self.event_destroy, "module": self.module_unload, "graph": self.graph_destroy,
                   "executable": self.graph_destroy}
        for handle, slot in self._handles.of(device):
            if slot.kind in destroy and self._handles.kind(handle):
                with suppress(HaianError):
                    destroy[slot.kind](handle)
        for address, (_, _, _, owner) in list(self._memory.items()):
            if owner == device:
                with suppress(HaianError):
                    self.free(device, address)

    def fini(self) -> None:
        """Gives back what this driver made; the library itself stays loaded, as every runtime of this kind asks."""
        if self._count > 0 and not self._forked:
            for device in range(self._count):
                with suppress(HaianError):  # a lost device has nothing left to give back
                    self._release(device)
            for device in self._contexts:
                self._calls["context_release"](self._ordinal(device))
            if "fini" in self._calls:
                self._calls["fini"]()
        self._clear()
        self._count = -1

    # ---- memory --------------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if nbytes < 1 or align < 0 or align & (align - 1):
            raise ArgumentError(f"{self.name}: alloc of {nbytes} bytes aligned to {align}; needs at least 1 byte and a power of two")
        return self._allocate(device, nbytes, align, "malloc", "device")

    def _allocate(self, device: int, nbytes: int, align: int, call: str, kind: str) -> int:
        """Memory of one kind; an alignment beyond the runtime's own is taken out of a larger block."""
        self._enter(device)
        function = self._call(call)
        room = nbytes + (align if align > self.table.align else 0)
        limit = self._facts(device).total_bytes if kind != "pinned" else 2**63 - 1
        if room > (limit or 2**63 - 1):
            raise OutOfMemory(f"{self.name}: {nbytes} bytes of {kind} memory; device {device} has {limit} in all")
        out = self._ffi.new("uintptr_t *")
        self._check(function(out, room), call, device, f" of {room} bytes")
        address = -(-out[0] // align) * align if room > nbytes else out[0]
        self._memory[address] = (out[0], nbytes, kind, device)
        return address

    def free(self, device: int, address: int) -> None:
        self._enter(device)
        block = self._memory.get(address)
        if block is None or block[3] != device:
            raise InvalidHandle(f"{self.name}: free of {address:#x}; needs the base address of a live allocation of device {device}")
        call = "host_free" if block[2] == "pinned" else "free"
        del self._memory[address]  # before the call: another thread may get the same address again at once
        code = self._call(call)(block[0])
        if code != self.table.success:
            self._memory[address] = block
            raise self._error(code, call, device)

    def mem_info(self, device: int) -> tuple[int, int]:
        self._enter(device)
        free, total = self._ffi.new("size_t *"), self._ffi.new("size_t *")
        self._check(self._call("mem_info")(free, total), "mem_info", device)
        return free[0], total[0]

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        if nbytes < 1:
            raise ArgumentError(f"{self.name}: host_alloc of {nbytes} bytes; needs at least 1")
        return self._allocate(device, nbytes, 0, *(("managed_malloc", "managed") if managed else ("host_malloc", "pinned")))

    def host_register(self, device: int, address: int, nbytes: int) -> None:
        self._enter(device)
        self._check(self._call("host_register")(address, nbytes), "host_register", device)
        self._registered.add(address)

    def host_unregister(self, device: int, address: int) -> None:
        self._enter(device)
        if address not in self._registered:
            raise InvalidHandle(f"{self.name}: host_unregister of {address:#x}; needs an address that host_register took")
        self._check(self._call("host_unregister")(address), "host_unregister", device)
        self._registered.discard(address)

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        """From what this driver allocated; addresses of other libraries are unknown."""
        self._enter(device)
        for base, (_, nbytes, kind, owner) in list(self._memory.items()):
            if base <= address < base + nbytes:
                return PointerInfo(kind, owner, base, nbytes)
        return PointerInfo("unknown")

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        kind = desc.kind
        if kind not in (HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER):
            raise ArgumentError(f"{self.name}: copy kind {kind!r}; needs h2d, d2h, d2d or peer")
        if kind == PEER and "set_context" in self._calls:
            self._enter(desc.dst_device)  # its context must exist
        self._enter(device)
        if kind == PEER and not 0 <= desc.dst_device < self._count:  # few runtimes look at it
            raise ArgumentError(f"{self.name}: peer copy to device {desc.dst_device}; there are {self._count}")
        rows, nbytes, pointer = desc.rows, desc.nbytes, self._stream(stream, device)
        if nbytes < 1 or rows < 1:
            if nbytes < 0 or rows < 0:
                raise ArgumentError(f"{self.name}: copy of {rows} rows of {nbytes} bytes; needs 0 or more")
            return
        if rows > 1 and nbytes == desc.dst_pitch == desc.src_pitch:
            rows, nbytes = 1, rows * nbytes
        if kind == DEVICE_TO_DEVICE:
            reach = (rows - 1) * max(desc.dst_pitch, desc.src_pitch) + nbytes
            if abs(desc.dst - desc.src) < reach and _overlap(desc, rows, nbytes):
                raise Unsupported(f"{self.name}: copy of {reach} bytes onto itself, {abs(desc.dst - desc.src)} apart; copy through other memory")
        if rows > 1 and "copy_2d" in self._calls and kind in self.table.directions:
            self._check(self._calls["copy_2d"](desc.dst, desc.dst_pitch, desc.src, desc.src_pitch, nbytes, rows, self.table.directions[kind], pointer),
                        "copy_2d", device)
        else:
            for row in range(rows):
                self._copy_row(device, kind, desc.dst + row * desc.dst_pitch, desc.src + row * desc.src_pitch, nbytes, pointer, desc.dst_device)
        if stream == 0:
            self._sync_default(device)

    def _copy_row(self, device: int, kind: str, dst: int, src: int, nbytes: int, pointer: int, dst_device: int) -> None:
        if kind == PEER:
            call = self._call("copy_peer")
            if pointer and "stream" not in self.table.calls["copy_peer"]:  # it is synchronous only: first what stands before it
                self._check(self._call("stream_sync")(pointer), "stream_sync", device)
            contexts = (self._context(dst_device), self._context(device)) if "set_context" in self._calls else (0, 0)
            self._check(call(dst, dst_device, contexts[0], src, device, contexts[1], nbytes, pointer), "copy_peer", device)
            return
        copier = self._copiers[kind]
        if copier is not None and (pointer or "copy" not in self._calls):
            self._check(copier(dst, src, nbytes, pointer), f"copy_{kind}" if f"copy_{kind}" in self._calls else "copy_async", device, f" of {nbytes} bytes")
            return
        if pointer:  # this direction is synchronous only: first what stands before it in the stream
            self._check(self._call("stream_sync")(pointer), "stream_sync", device)
        self._check(self._call("copy")(dst, src, nbytes, self.table.directions[kind]), "copy", device, f" of {nbytes} bytes")

    def _sync_default(self, device: int) -> None:
        """What was queued on stream 0 has happened when its call returns."""
        call = "stream_sync" if "stream_sync" in self._calls else "device_sync"
        self._check(self._calls[call](*((0,) if call == "stream_sync" else ())), call, device)

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        size = len(pattern)
        if size not in (1, 2, 4) or nbytes < 0 or nbytes % size:
            raise ArgumentError(f"{self.name}: fill of {nbytes} bytes with a pattern of {size}; needs 1, 2 or 4 bytes and a multiple of it")
        self._enter(device)
        pointer = self._stream(stream, device)
        if nbytes == 0:
            return
        if size > 1 and pattern == pattern[:1] * size:
            pattern, size = pattern[:1], 1
        call = {1: "memset_async", 2: "memset16", 4: "memset32"}[size]
        if size == 1 and call not in self._calls and "memset" in self._calls:
            if pointer:
                self._check(self._call("stream_sync")(pointer), "stream_sync", device)
            self._check(self._call("memset")(address, pattern[0], nbytes), "memset", device)
        elif call in self._calls and address % size == 0:
            self._check(self._calls[call](address, int.from_bytes(pattern, "little", signed=size == 4 and "value:unsigned" not in self.table.calls[call]),
                                          nbytes // size, pointer), call, device)
        else:
            self._fill_by_copy(device, address, pattern, nbytes, stream)
        if stream == 0:
            self._sync_default(device)

    def _fill_by_copy(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int) -> None:
        """A pattern that the runtime has no memset for: a seed from the host, doubled on the device in stream order."""
        seed = self._ffi.from_buffer(pattern * (min(nbytes, _SEED_BYTES) // len(pattern)))
        done = len(seed)
        self.copy(device, Copy(HOST_TO_DEVICE, address, int(self._ffi.cast("uintptr_t", seed)), done), stream)
        if stream:
            self._handles.get(stream, "stream").keep.append(seed)
        while done < nbytes:
            n = min(done, nbytes - done)
            self.copy(device, Copy(DEVICE_TO_DEVICE, address + done, address, n), stream)
            done += n

    # ---- streams ---------------------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        self._enter(device)
        return self._make("stream_new", "stream", device)

    def stream_destroy(self, stream: int) -> None:
        slot = self._handles.pop(stream, "stream")
        if slot.owned:
            self._enter(slot.device)
            self._call("stream_sync")(slot.pointer)  # drained; an error of its work goes with it
            self._check(self._call("stream_destroy")(slot.pointer), "stream_destroy", slot.device)

    def stream_sync(self, stream: int) -> None:
        slot = self._slot(stream, "stream") if stream else None
        if slot is None:
            self._enter(getattr(self._local, "device", None) or 0)
            self._sync_default(self._local.device)
            return
        self._check(self._call("stream_sync")(slot.pointer), "stream_sync", slot.device)
        slot.keep.clear()
        self._deliver(slot)

    def stream_query(self, stream: int) -> bool:
        slot = self._slot(stream, "stream")
        done = self._done("stream_query", slot.pointer, slot.device)
        if done and (slot.keep or slot.error):
            slot.keep.clear()
            self._deliver(slot)
        return done

    def stream_wait_event(self, stream: int, event: int) -> None:
        pointer = self._stream(stream)
        slot = self._slot(event, "event")
        if stream:
            self._enter(self._handles.get(stream, "stream").device)
        if slot.recorded:
            self._check(self._call("stream_wait")(pointer, slot.pointer), "stream_wait", slot.device)

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        slot = self._slot(stream, "stream") if stream else None
        if slot is None:
            self._enter(getattr(self._local, "device", None) or 0)
        call = self._call("host_func")
        token = next(self._tokens)
        with self._lock:
            self._pending[token] = (slot, fn)
        code = call(slot.pointer if slot else 0, self._callback, token)
        if code != self.table.success:
            with self._lock:
                self._pending.pop(token, None)
            raise self._error(code, "host_func", slot.device if slot else -1)

    # ---- events ----------------------------------------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        self._enter(device)
        made = self._make("event_new" if timing or "event_new_untimed" not in self._calls else "event_new_untimed", "event", device)
        self._handles.get(made, "event").timed = timing
        return made

    def event_destroy(self, event: int) -> None:
        slot = self._handles.pop(event, "event")
        self._enter(slot.device)
        self._check(self._call("event_destroy")(slot.pointer), "event_destroy", slot.device)

    def event_record(self, event: int, stream: int) -> None:
        slot = self._slot(event, "event")
        self._check(self._call("event_record")(slot.pointer, self._stream(stream, slot.device)), "event_record", slot.device)
        slot.recorded = True

    def event_query(self, event: int) -> bool:
        slot = self._slot(event, "event")
        return not slot.recorded or self._done("event_query", slot.pointer, slot.device)

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        slot = self._slot(event, "event")
        if not slot.recorded:
            return
        if timeout_ns < 0:
            self._check(self._call("event_sync")(slot.pointer), "event_sync", slot.device)
            return
        deadline = time.monotonic_ns() + timeout_ns  # no runtime of this kind has a timed wait
        while not self._done("event_query", slot.pointer, slot.device):
            if time.monotonic_ns() >= deadline:
                raise Timeout(f"{self.name}: the event was not reached within {timeout_ns} ns; wait longer or look at its stream")
            time.sleep(_POLL_S)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        first, last = self._slot(start, "event"), self._slot(end, "event")
        if not (first.recorded and last.recorded):
            raise NotReady(f"{self.name}: elapsed time of an event that was never recorded; record both and wait for the later one")
        if not (first.timed and last.timed) and "event_new_untimed" not in self._calls:  # else the runtime itself refuses
            raise ArgumentError(f"{self.name}: elapsed time of an event made without timing; make both with timing=True")
        ms = self._ffi.new("float *")
        self._check(self._call("elapsed")(ms, first.pointer, last.pointer), "elapsed", first.device)
        return round(ms[0] * 1e6)

    # ---- modules and launch ----------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        begins = self.table.formats.get(format)
        if begins is None:
            raise Unsupported(f"{self.name}: image format {format!r}; needs {' or '.join(self.table.formats) or 'none: it loads no modules'}")
        if begins and not image.startswith(begins):
            raise ArgumentError(f"{self.name}: the image is no {format}: it begins with {bytes(image[:4])!r}; compile it for this device")
        self._enter(device)
        data = self._ffi.from_buffer(image + b"\0")  # text images end with NUL
        return self._make("module_load", "module", device, data, len(image))

    def module_unload(self, module: int) -> None:
        slot = self._handles.pop(module, "module")
        for handle, kernel in self._handles.of(slot.device, module):
            self._handles.pop(handle, kernel.kind)
        self._enter(slot.device)
        self._check(self._call("module_unload")(slot.pointer), "module_unload", slot.device)

    def get_kernel(self, module: int, name: str) -> int:
        slot = self._slot(module, "module")
        return self._make("module_function", "kernel", slot.device, slot.pointer, name.encode(), what=f" {name!r}", parent=module, name=name)

    def kernel_info(self, kernel: int) -> KernelInfo:
        slot = self._slot(kernel, "kernel")
        value, known = self._ffi.new("int *"), {}
        for name, attribute in _KERNEL_ATTRIBUTES.items():
            if "function_attribute" in self._calls and self._calls["function_attribute"](value, attribute, slot.pointer) == self.table.success:
                known[name] = value[0]
        return KernelInfo(slot.name, None, **known)

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        self._enter(device)
        slot = self._handles.get(desc.kernel, "kernel")
        if slot.device != device:
            raise ArgumentError(f"{self.name}: a kernel loaded on device {slot.device} was launched on {device}; load it there")
        if desc.cluster != (1, 1, 1):
            raise Unsupported(f"{self.name}: cluster {desc.cluster}; this driver launches without clusters, compile with num_ctas=1")
        if desc.shared_bytes > max(slot.shared, self.table.default_shared) and "set_shared" in self._calls:
            self._check(self._calls["set_shared"](slot.pointer, desc.shared_bytes), "set_shared", device, f" of {desc.shared_bytes} bytes")
            slot.shared = desc.shared_bytes
        self._run_kernel(device, slot, desc, self._pack(desc.args), self._stream(stream, device))

    def _run_kernel(self, device: int, slot: Slot, desc: Launch, params: Any, stream: int) -> None:
        """The vendor's own launch.  params: addresses of the arguments, which lie in slots of 8 bytes; stream: the vendor's."""
        unit = self.table.block_unit(self._facts(device)) if self.table.block_unit else 1
        if unit > 1 and desc.threads > self.props(device).max_threads:  # the division would hide it from the runtime
            raise ArgumentError(f"{self.name}: {desc.threads} threads; a program has at most {self.props(device).max_threads}")
        gx, gy, gz = desc.grid
        code = self._call("launch")(slot.pointer, gx, gy, gz, -(-desc.threads // unit), 1, 1, desc.shared_bytes, stream, params)
        if code != self.table.success:
            raise self._error(code, "launch", device, f" of {slot.name!r}")

    def native_launch(self, kernel: int, threads: int, shared_bytes: int) -> dict[str, Any] | None:
        """How native code launches a kernel without ``launch``: the vendor's function and pointers, for ``_native.Launcher``.

        None where the vendor's function is not shaped like cuLaunchKernel.  The caller makes the device current before each
        launch, with ``make_current``.
        """
        if not self.launch_symbol:
            return None
        slot = self._handles.get(kernel, "kernel")
        self._enter(slot.device)
        if shared_bytes > max(slot.shared, self.table.default_shared) and "set_shared" in self._calls:
            self._check(self._calls["set_shared"](slot.pointer, shared_bytes), "set_shared", slot.device, f" of {shared_bytes} bytes")
            slot.shared = shared_bytes
        unit = self.table.block_unit(self._facts(slot.device)) if self.table.block_unit else 1
        if unit > 1 and threads > self.props(slot.device).max_threads:
            raise ArgumentError(f"{self.name}: {threads} threads; a program has at most {self.props(slot.device).max_threads}")

        def translate(status: int) -> None:
            raise self._error(status, "launch", slot.device, f" of {slot.name!r}")

        return {"symbol": self.launch_symbol, "kernel": slot.pointer, "threads": -(-threads // unit), "translate": translate}

    def native_stream(self, stream: int) -> int:
        """The vendor's own pointer of a stream; 0 for the default one."""
        return self.native(stream)

    def make_current(self, device: int) -> None:
        """Makes the device this thread's current one, as the vendor's runtime wants it before a launch."""
        self._enter(device)

    def _pack(self, args: Sequence[tuple[str, int | float]]) -> Any:
        """Addresses of the arguments' values.  The memory is this thread's, one a signature: a launch reads it before it returns."""
        types = tuple([t for t, _ in args])
        made = self._local.__dict__.setdefault("packs", {})
        try:
            if types not in made:
                layout = struct.Struct("<" + "".join(["Q" if t[0] == "*" else _PACK[t] for t in types]))
                memory = self._ffi.new("uint64_t[]", max(1, len(types)))
                base = int(self._ffi.cast("uintptr_t", memory))
                made[types] = layout, self._ffi.buffer(memory), memory, self._ffi.new("uintptr_t[]", [base + 8 * i for i in range(len(types))])
            layout, buffer, _, params = made[types]
            layout.pack_into(buffer, 0, *[v for _, v in args])
        except (KeyError, struct.error) as error:
            raise ArgumentError(f"{self.name}: launch arguments {list(args)!r}: {error}; types are *T, {', '.join(_PACK)}") from None
        return params

    # ---- graphs ------------------------------------------------------------------------------------------------------------
    def graph_begin(self, stream: int) -> None:
        slot = self._slot(stream, "stream")
        self._check(self._call("capture_begin")(slot.pointer), "capture_begin", slot.device)

    def graph_end(self, stream: int, abort: bool = False) -> int:
        slot = self._slot(stream, "stream")
        out = self._ffi.new("uintptr_t *")
        code = self._call("capture_end")(slot.pointer, out)
        if abort:
            if out[0]:
                self._call("graph_destroy")(out[0])
            return 0
        self._check(code, "capture_end", slot.device)
        return self._handles.add(Slot("graph", slot.device, out[0]))

    def graph_instantiate(self, graph: int) -> int:
        slot = self._slot(graph, "graph")
        return self._make("graph_instantiate", "executable", slot.device, slot.pointer)

    def graph_launch(self, executable: int, stream: int) -> None:
        slot = self._slot(executable, "executable")
        self._check(self._call("graph_launch")(slot.pointer, self._stream(stream, slot.device)), "graph_launch", slot.device)

    def graph_destroy(self, graph: int) -> None:
        kind = self._handles.kind(graph)
        slot = self._handles.pop(graph, "executable" if kind == "executable" else "graph")
        self._enter(slot.device)
        call = "exec_destroy" if slot.kind == "executable" else "graph_destroy"
        self._check(self._call(call)(slot.pointer), call, slot.device)
