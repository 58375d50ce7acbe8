"""The CUDA driver API as a Driver.  Handles are CUDA's own pointers; the primary context of each device is retained once.

Facts used here (names, argument order, attribute numbers) are those of NVIDIA's public CUDA driver API reference.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ...hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Driver, Launch
from ...hal.errors import (
    ArgumentError,
    DeviceLost,
    EnvironmentMissing,
    HaianError,
    InternalError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
    Unsupported,
)

__all__ = ["CudaDriver"]

_CDEF = """
typedef int CUresult; typedef int CUdevice; typedef unsigned long long CUdeviceptr;
typedef void *CUcontext; typedef void *CUstream; typedef void *CUevent; typedef void *CUmodule; typedef void *CUfunction;
CUresult cuInit(unsigned int); CUresult cuDriverGetVersion(int *); CUresult cuDeviceGetCount(int *); CUresult cuDeviceGet(CUdevice *, int);
CUresult cuDeviceGetName(char *, int, CUdevice); CUresult cuDeviceTotalMem_v2(size_t *, CUdevice); CUresult cuDeviceGetAttribute(int *, int, CUdevice);
CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice); CUresult cuCtxSetCurrent(CUcontext); CUresult cuCtxSynchronize(void);
CUresult cuMemAlloc_v2(CUdeviceptr *, size_t); CUresult cuMemFree_v2(CUdeviceptr); CUresult cuMemGetInfo_v2(size_t *, size_t *);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream); CUresult cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream);
CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream); CUresult cuMemsetD16Async(CUdeviceptr, unsigned short, size_t, CUstream);
CUresult cuMemsetD32Async(CUdeviceptr, unsigned int, size_t, CUstream);
CUresult cuStreamCreate(CUstream *, unsigned int); CUresult cuStreamDestroy_v2(CUstream); CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamQuery(CUstream); CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned int); CUresult cuLaunchHostFunc(CUstream, void (*)(void *), void *);
CUresult cuEventCreate(CUevent *, unsigned int); CUresult cuEventDestroy_v2(CUevent); CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent); CUresult cuEventSynchronize(CUevent); CUresult cuEventElapsedTime(float *, CUevent, CUevent);
CUresult cuModuleLoadData(CUmodule *, const void *); CUresult cuModuleUnload(CUmodule); CUresult cuModuleGetFunction(CUfunction *, CUmodule, const char *);
CUresult cuFuncSetAttribute(CUfunction, int, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **);
CUresult cuGetErrorName(CUresult, const char **); CUresult cuGetErrorString(CUresult, const char **);
"""
# CUresult numbers that mean something to haian; any other is an InternalError that names it.
_NOT_READY = 600
_ERRORS: dict[int, type[HaianError]] = {1: ArgumentError, 2: OutOfMemory, 100: EnvironmentMissing, 101: ArgumentError, 200: ArgumentError, 201: InvalidHandle,
                                        209: Unsupported, 218: ArgumentError, 400: InvalidHandle, 500: ArgumentError, 600: NotReady, 702: Timeout, 801: Unsupported}
# errors after which the context is gone: illegal address, launch failure, ECC, misaligned address, illegal instruction, ...
_FATAL = {214, 220, 700, 714, 715, 716, 717, 718, 719, 721}
_ATTRIBUTE = {"max_threads": 1, "shared": 97, "multiprocessors": 16, "major": 75, "minor": 76, "grid_x": 5, "grid_y": 6, "grid_z": 7}
_STREAM_NON_BLOCKING, _EVENT_DISABLE_TIMING, _EVENT_BLOCKING_SYNC = 1, 2, 1
_FUNC_MAX_DYNAMIC_SHARED = 8
_DEFAULT_SHARED = 48 << 10  # more must be asked for per kernel
_C_TYPE = {"i1": "int8_t", "i8": "int8_t", "u8": "uint8_t", "i16": "int16_t", "i32": "int32_t", "u32": "uint32_t", "i64": "int64_t", "u64": "uint64_t",
           "fp32": "float", "fp64": "double"}


class CudaDriver(Driver):
    """NVIDIA GPUs.  ``library`` is a path to libcuda, for tests against a stand-in."""

    name = "cuda"
    vendor = "NVIDIA"

    def __init__(self, library: str = "libcuda.so.1") -> None:
        from cffi import FFI
        self._ffi = FFI()
        self._ffi.cdef(_CDEF)
        self._contexts: list[Any] = []
        self._local = threading.local()
        self._lost = False
        self._pending: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self.why_none = ""
        try:
            self._cuda = self._ffi.dlopen(library)
        except OSError as error:
            self._cuda, self._count, self.why_none = None, 0, f"no NVIDIA driver ({error})"
            return
        code = self._cuda.cuInit(0)
        count = self._ffi.new("int *")
        if code or self._cuda.cuDeviceGetCount(count):
            self._count, self.why_none = 0, f"cuInit failed with {code}"
            return
        self._count = count[0]
        version = self._ffi.new("int *")
        self._check(self._cuda.cuDriverGetVersion(version), "cuDriverGetVersion")
        self.version = f"CUDA driver API {version[0] // 1000}.{version[0] % 1000 // 10}"
        self._host_callback = self._ffi.callback("void(void *)", self._run_host_func)

    # ---- plumbing ----------------------------------------------------------------------------------------------------
    def _check(self, code: int, call: str) -> None:
        if code == 0:
            return
        text = self._ffi.new("const char **")
        self._cuda.cuGetErrorString(code, text)
        reason = self._ffi.string(text[0]).decode() if text[0] != self._ffi.NULL else "unknown error"
        if code in _FATAL:
            self._lost = True
        if self._lost:
            raise DeviceLost(f"cuda: {call} failed with {code} ({reason}); CUDA contexts do not recover, start a new process")
        raise _ERRORS.get(code, InternalError)(f"cuda: {call} failed with {code} ({reason})")

    def _enter(self, device: int) -> None:
        """Makes the device's primary context current on this thread, once."""
        if not 0 <= device < self._count:
            raise ArgumentError(f"cuda: device {device}; there are {self._count}")
        if getattr(self._local, "device", None) == device:
            return
        with self._lock:
            while len(self._contexts) <= device:
                context = self._ffi.new("CUcontext *")
                self._check(self._cuda.cuDevicePrimaryCtxRetain(context, self._device(len(self._contexts))), "cuDevicePrimaryCtxRetain")
                self._contexts.append(context[0])
        self._check(self._cuda.cuCtxSetCurrent(self._contexts[device]), "cuCtxSetCurrent")
        self._local.device = device

    def _device(self, index: int) -> int:
        device = self._ffi.new("CUdevice *")
        self._check(self._cuda.cuDeviceGet(device, index), "cuDeviceGet")
        return device[0]

    def _attribute(self, device: int, name: str) -> int:
        value = self._ffi.new("int *")
        self._check(self._cuda.cuDeviceGetAttribute(value, _ATTRIBUTE[name], device), "cuDeviceGetAttribute")
        return value[0]

    def _pointer(self, handle: int) -> Any:
        return self._ffi.cast("void *", handle)

    def _handle(self, made: Any) -> int:
        return int(self._ffi.cast("uintptr_t", made[0]))

    def _any_context(self) -> None:
        """Stream, event and module calls name no device; any current context of the process does."""
        if getattr(self._local, "device", None) is None:
            self._enter(0)

    # ---- core ----------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        return self._count

    def props(self, device: int) -> Capabilities:
        self._enter(device)
        cu = self._device(device)
        name = self._ffi.new("char[256]")
        self._check(self._cuda.cuDeviceGetName(name, 256, cu), "cuDeviceGetName")
        total = self._ffi.new("size_t *")
        self._check(self._cuda.cuDeviceTotalMem_v2(total, cu), "cuDeviceTotalMem")
        capability = 10 * self._attribute(cu, "major") + self._attribute(cu, "minor")
        dtypes = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
        return Capabilities(
            model=self._ffi.string(name).decode(), total_bytes=total[0], max_alloc_bytes=total[0], align_bytes=256, async_copy=True, streams=True,
            events=True, event_unit_ns=1000, dtypes_load=dtypes + (("float8_e4m3fn", "float8_e5m2") if capability >= 89 else ()), dtypes_math=dtypes,
            triton_target=("cuda", capability, 32), image_format="cubin",
            max_grid=(self._attribute(cu, "grid_x"), self._attribute(cu, "grid_y"), self._attribute(cu, "grid_z")),
            max_threads=self._attribute(cu, "max_threads"),
            max_shared_bytes=self._attribute(cu, "shared"), multiprocessors=self._attribute(cu, "multiprocessors"), bf16_atomics=capability >= 90,
            extra={"compute_capability": capability})

    def sync(self, device: int) -> None:
        self._enter(device)
        self._check(self._cuda.cuCtxSynchronize(), "cuCtxSynchronize")

    def reset(self, device: int) -> None:
        raise Unsupported("cuda: the primary context is shared with every library of the process and is not reset; start a new process")

    # ---- memory --------------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if nbytes < 1 or align & (align - 1) or align > 512:
            raise ArgumentError(f"cuda: alloc of {nbytes} bytes aligned to {align}; needs at least 1 byte and a power of two up to 512")
        self._enter(device)
        address = self._ffi.new("CUdeviceptr *")
        self._check(self._cuda.cuMemAlloc_v2(address, nbytes), f"cuMemAlloc of {nbytes} bytes")
        return address[0]

    def free(self, device: int, address: int) -> None:
        self._enter(device)
        self._check(self._cuda.cuMemFree_v2(address), "cuMemFree")

    def mem_info(self, device: int) -> tuple[int, int]:
        self._enter(device)
        free, total = self._ffi.new("size_t *"), self._ffi.new("size_t *")
        self._check(self._cuda.cuMemGetInfo_v2(free, total), "cuMemGetInfo")
        return free[0], total[0]

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        self._enter(device)
        handle = self._pointer(stream)
        for row in range(desc.rows):
            dst, src = desc.dst + row * desc.dst_pitch, desc.src + row * desc.src_pitch
            if desc.kind == HOST_TO_DEVICE:
                self._check(self._cuda.cuMemcpyHtoDAsync_v2(dst, self._pointer(src), desc.nbytes, handle), "cuMemcpyHtoDAsync")
            elif desc.kind == DEVICE_TO_HOST:
                self._check(self._cuda.cuMemcpyDtoHAsync_v2(self._pointer(dst), src, desc.nbytes, handle), "cuMemcpyDtoHAsync")
            elif desc.kind == DEVICE_TO_DEVICE:
                self._check(self._cuda.cuMemcpyDtoDAsync_v2(dst, src, desc.nbytes, handle), "cuMemcpyDtoDAsync")
            elif desc.kind == PEER:
                self._enter(desc.dst_device)
                self._enter(device)
                self._check(self._cuda.cuMemcpyPeerAsync(dst, self._contexts[desc.dst_device], src, self._contexts[device], desc.nbytes, handle), "cuMemcpyPeerAsync")
            else:
                raise ArgumentError(f"cuda: copy kind {desc.kind!r}; needs h2d, d2h, d2d or peer")
        if stream == 0:
            self._check(self._cuda.cuStreamSynchronize(handle), "cuStreamSynchronize")

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        self._enter(device)
        size = len(pattern)
        if size not in (1, 2, 4) or nbytes % size:
            raise ArgumentError(f"cuda: fill of {nbytes} bytes with a pattern of {size}; needs 1, 2 or 4 bytes and a multiple of it")
        call = {1: self._cuda.cuMemsetD8Async, 2: self._cuda.cuMemsetD16Async, 4: self._cuda.cuMemsetD32Async}[size]
        self._check(call(address, int.from_bytes(pattern, "little"), nbytes // size, self._pointer(stream)), "cuMemsetAsync")
        if stream == 0:
            self._check(self._cuda.cuStreamSynchronize(self._pointer(0)), "cuStreamSynchronize")

    # ---- streams and events ----------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        self._enter(device)
        made = self._ffi.new("CUstream *")
        self._check(self._cuda.cuStreamCreate(made, _STREAM_NON_BLOCKING), "cuStreamCreate")
        return self._handle(made)

    def stream_destroy(self, stream: int) -> None:
        self.stream_sync(stream)
        self._check(self._cuda.cuStreamDestroy_v2(self._pointer(stream)), "cuStreamDestroy")

    def stream_sync(self, stream: int) -> None:
        self._any_context()
        self._check(self._cuda.cuStreamSynchronize(self._pointer(stream)), "cuStreamSynchronize")

    def stream_query(self, stream: int) -> bool:
        self._any_context()
        code = self._cuda.cuStreamQuery(self._pointer(stream))
        if code == _NOT_READY:
            return False
        self._check(code, "cuStreamQuery")
        return True

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._any_context()
        self._check(self._cuda.cuStreamWaitEvent(self._pointer(stream), self._pointer(event), 0), "cuStreamWaitEvent")

    def _run_host_func(self, token: Any) -> None:
        with self._lock:
            fn = self._pending.pop(int(self._ffi.cast("uintptr_t", token)))
        fn()

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        self._any_context()
        with self._lock:
            token = id(fn) ^ time.monotonic_ns() & 0x7FFFFFFFFFFF or 1
            self._pending[token] = fn
        self._check(self._cuda.cuLaunchHostFunc(self._pointer(stream), self._host_callback, self._pointer(token)), "cuLaunchHostFunc")

    def event_create(self, device: int, timing: bool = True) -> int:
        self._enter(device)
        made = self._ffi.new("CUevent *")
        self._check(self._cuda.cuEventCreate(made, _EVENT_BLOCKING_SYNC | (0 if timing else _EVENT_DISABLE_TIMING)), "cuEventCreate")
        return self._handle(made)

    def event_destroy(self, event: int) -> None:
        self._any_context()
        self._check(self._cuda.cuEventDestroy_v2(self._pointer(event)), "cuEventDestroy")

    def event_record(self, event: int, stream: int) -> None:
        self._any_context()
        self._check(self._cuda.cuEventRecord(self._pointer(event), self._pointer(stream)), "cuEventRecord")

    def event_query(self, event: int) -> bool:
        self._any_context()
        code = self._cuda.cuEventQuery(self._pointer(event))
        if code == _NOT_READY:
            return False
        self._check(code, "cuEventQuery")
        return True

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        if timeout_ns < 0:
            self._any_context()
            self._check(self._cuda.cuEventSynchronize(self._pointer(event)), "cuEventSynchronize")
            return
        deadline = time.monotonic_ns() + timeout_ns  # CUDA has no timed wait
        while not self.event_query(event):
            if time.monotonic_ns() >= deadline:
                raise Timeout(f"cuda: the event was not reached within {timeout_ns} ns")
            time.sleep(50e-6)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        self._any_context()
        ms = self._ffi.new("float *")
        self._check(self._cuda.cuEventElapsedTime(ms, self._pointer(start), self._pointer(end)), "cuEventElapsedTime")
        return round(ms[0] * 1e6)

    # ---- modules and launch ----------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        if format not in ("cubin", "ptx"):
            raise Unsupported(f"cuda: image format {format!r}; needs cubin or ptx")
        if format == "cubin" and image[:4] != b"\x7fELF":
            raise ArgumentError("cuda: the image is not a cubin (no ELF header); compile it for this device's capability")
        self._enter(device)
        made = self._ffi.new("CUmodule *")
        self._check(self._cuda.cuModuleLoadData(made, self._ffi.from_buffer(image + b"\0")), "cuModuleLoadData")
        return self._handle(made)

    def module_unload(self, module: int) -> None:
        self._any_context()
        self._check(self._cuda.cuModuleUnload(self._pointer(module)), "cuModuleUnload")

    def get_kernel(self, module: int, name: str) -> int:
        self._any_context()
        made = self._ffi.new("CUfunction *")
        self._check(self._cuda.cuModuleGetFunction(made, self._pointer(module), name.encode()), f"cuModuleGetFunction {name!r}")
        return self._handle(made)

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        self._enter(device)
        kernel = self._pointer(desc.kernel)
        if desc.shared_bytes > _DEFAULT_SHARED:
            self._check(self._cuda.cuFuncSetAttribute(kernel, _FUNC_MAX_DYNAMIC_SHARED, desc.shared_bytes), "cuFuncSetAttribute")
        boxes = [self._ffi.new("uint64_t *", v) if t.startswith("*") else self._ffi.new(f"{_C_TYPE[t]} *", v) for t, v in desc.args]
        params = self._ffi.new("void *[]", [self._ffi.cast("void *", b) for b in boxes])
        self._check(self._cuda.cuLaunchKernel(kernel, *desc.grid, desc.threads, 1, 1, desc.shared_bytes, self._pointer(stream), params, self._ffi.NULL), "cuLaunchKernel")
