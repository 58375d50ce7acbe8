"""The two tables that vendors share: the CUDA runtime API under a prefix, and the CUDA driver API.

Names, argument order and numbers are those of the public CUDA and HIP references.  A vendor takes one and changes lines.
"""
from __future__ import annotations

import re

from ...hal.errors import (
    ArgumentError,
    EnvironmentMissing,
    HaianError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
    Unsupported,
)
from .table import Facts

__all__ = ["CUDA_DRIVER", "CUDA_ERRORS", "CUDA_FATAL", "HIP", "HIP_ATTRIBUTES", "HIP_FORMATS", "cuda_runtime", "gfx", "modules"]

# Numbers that CUDA's driver and runtime and all runtimes of their shape have in common; any other is an InternalError.
CUDA_ERRORS: dict[int, type[HaianError]] = {
    1: ArgumentError, 2: OutOfMemory, 3: EnvironmentMissing, 9: ArgumentError, 17: InvalidHandle, 21: ArgumentError, 35: EnvironmentMissing,
    98: InvalidHandle, 100: EnvironmentMissing, 101: ArgumentError, 200: ArgumentError, 201: InvalidHandle, 209: Unsupported, 218: ArgumentError,
    400: InvalidHandle, 500: ArgumentError, 600: NotReady, 702: Timeout, 712: ArgumentError, 713: InvalidHandle, 801: Unsupported}
# after these the context is gone: ECC, NVLink, illegal address, assert, ..., illegal instruction, misaligned, launch failure
CUDA_FATAL = frozenset({214, 220, 700, 710, 714, 715, 716, 717, 718, 719, 721})

_NON_BLOCKING, _TIMED, _UNTIMED = 1, 1, 3  # stream 1: independent of stream 0; event 1: waits sleep, 2: no timing
_RELAXED = 2  # stream capture: allocations meanwhile stay legal, on this thread and others


def cuda_runtime(p: str, **changes: str) -> dict[str, str]:
    """The CUDA runtime API with prefix ``p``; an argument replaces that line, "" removes it."""
    calls = {
        "device_count": f"{p}GetDeviceCount(count)", "set_device": f"{p}SetDevice(device)", "device_sync": f"{p}DeviceSynchronize()",
        "device_reset": f"{p}DeviceReset()", "properties": f"{p}GetDeviceProperties(text, device)",
        "attribute": f"{p}DeviceGetAttribute(value_out, attribute, cu_device)", "uuid": f"{p}DeviceGetPCIBusId(text, length, cu_device)",
        "driver_version": f"{p}RuntimeGetVersion(value_out)", "clear_error": f"{p}GetLastError()", "error_text": f"text {p}GetErrorString(code)",
        "mem_info": f"{p}MemGetInfo(free_out, total_out)", "malloc": f"{p}Malloc(out, n)", "free": f"{p}Free(ptr)",
        "host_malloc": f"{p}MallocHost(out, n)", "host_free": f"{p}FreeHost(ptr)", "managed_malloc": f"{p}MallocManaged(out, n, 1)",
        "host_register": f"{p}HostRegister(ptr, n, 0)", "host_unregister": f"{p}HostUnregister(ptr)",
        "copy": f"{p}Memcpy(dst, src, n, kind)", "copy_async": f"{p}MemcpyAsync(dst, src, n, kind, stream)",
        "copy_peer": f"{p}MemcpyPeerAsync(dst, dst_device, src, src_device, n, stream)", "memset": f"{p}Memset(ptr, value, n)",
        "memset_async": f"{p}MemsetAsync(ptr, value, n, stream)",
        "stream_new": f"{p}StreamCreateWithFlags(out, {_NON_BLOCKING})", "stream_destroy": f"{p}StreamDestroy(stream)",
        "stream_sync": f"{p}StreamSynchronize(stream)", "stream_query": f"{p}StreamQuery(stream)", "stream_wait": f"{p}StreamWaitEvent(stream, event, 0)",
        "host_func": f"{p}LaunchHostFunc(stream, fn, user)",
        "event_new": f"{p}EventCreateWithFlags(out, {_TIMED})", "event_new_untimed": f"{p}EventCreateWithFlags(out, {_UNTIMED})",
        "event_destroy": f"{p}EventDestroy(event)", "event_record": f"{p}EventRecord(event, stream)", "event_query": f"{p}EventQuery(event)",
        "event_sync": f"{p}EventSynchronize(event)", "elapsed": f"{p}EventElapsedTime(ms, start, end)",
        "capture_begin": f"{p}StreamBeginCapture(stream, {_RELAXED})", "capture_end": f"{p}StreamEndCapture(stream, out)",
        "graph_instantiate": f"{p}GraphInstantiateWithFlags(out, graph, 0:unsigned long long)", "graph_launch": f"{p}GraphLaunch(exec, stream)",
        "graph_destroy": f"{p}GraphDestroy(graph)", "exec_destroy": f"{p}GraphExecDestroy(exec)"}
    calls.update(changes)
    return {k: v for k, v in calls.items() if v}


def modules(p: str, launch: str = "LaunchKernel", **changes: str) -> dict[str, str]:
    """Loading images and launching, in the shape of the CUDA driver API with prefix ``p``."""
    calls = {
        "module_load": f"{p}ModuleLoadData(out, image)", "module_unload": f"{p}ModuleUnload(module)",
        "module_function": f"{p}ModuleGetFunction(out, module, name)", "function_attribute": f"{p}FuncGetAttribute(value_out, attribute, function)",
        "launch": f"{p}{launch}(function, gx, gy, gz, bx, by, bz, shared, stream, params, 0:uintptr_t)"}
    calls.update(changes)
    return {k: v for k, v in calls.items() if v}


CUDA_DRIVER: dict[str, str] = modules("cu") | {
    "driver_init": "cuInit(0)", "driver_version": "cuDriverGetVersion(value_out)", "error_text": "cuGetErrorString(code, text_out)",
    "device_count": "cuDeviceGetCount(count)", "device_get": "cuDeviceGet(value_out, device)", "device_name": "cuDeviceGetName(text, length, cu_device)",
    "attribute": "cuDeviceGetAttribute(value_out, attribute, cu_device)", "uuid": "cuDeviceGetUuid_v2|cuDeviceGetUuid(text, cu_device)",
    "mem_total": "cuDeviceTotalMem_v2(total_out, cu_device)", "mem_info": "cuMemGetInfo_v2(free_out, total_out)",
    "context_retain": "cuDevicePrimaryCtxRetain(out, cu_device)", "context_release": "cuDevicePrimaryCtxRelease_v2(cu_device)",
    "set_context": "cuCtxSetCurrent(context)", "device_sync": "cuCtxSynchronize()",
    "malloc": "cuMemAlloc_v2(out, n)", "free": "cuMemFree_v2(ptr)", "host_malloc": "cuMemAllocHost_v2(out, n)", "host_free": "cuMemFreeHost(ptr)",
    "managed_malloc": "cuMemAllocManaged(out, n, 1)", "host_register": "cuMemHostRegister_v2(ptr, n, 0)", "host_unregister": "cuMemHostUnregister(ptr)",
    "copy_h2d": "cuMemcpyHtoDAsync_v2(dst, src, n, stream)", "copy_d2h": "cuMemcpyDtoHAsync_v2(dst, src, n, stream)",
    "copy_d2d": "cuMemcpyDtoDAsync_v2(dst, src, n, stream)", "copy_peer": "cuMemcpyPeerAsync(dst, dst_context, src, src_context, n, stream)",
    "memset_async": "cuMemsetD8Async(ptr, value:unsigned char, n, stream)", "memset16": "cuMemsetD16Async(ptr, value:unsigned short, n, stream)",
    "memset32": "cuMemsetD32Async(ptr, value:unsigned, n, stream)",
    "stream_new": f"cuStreamCreate(out, {_NON_BLOCKING})", "stream_destroy": "cuStreamDestroy_v2(stream)", "stream_sync": "cuStreamSynchronize(stream)",
    "stream_query": "cuStreamQuery(stream)", "stream_wait": "cuStreamWaitEvent(stream, event, 0)", "host_func": "cuLaunchHostFunc(stream, fn, user)",
    "event_new": f"cuEventCreate(out, {_TIMED})", "event_new_untimed": f"cuEventCreate(out, {_UNTIMED})", "event_destroy": "cuEventDestroy_v2(event)",
    "event_record": "cuEventRecord(event, stream)", "event_query": "cuEventQuery(event)", "event_sync": "cuEventSynchronize(event)",
    "elapsed": "cuEventElapsedTime_v2|cuEventElapsedTime(ms, start, end)", "set_shared": "cuFuncSetAttribute(function, 8:int, value)",
    "capture_begin": f"cuStreamBeginCapture_v2(stream, {_RELAXED})", "capture_end": "cuStreamEndCapture(stream, out)",
    "graph_instantiate": "cuGraphInstantiateWithFlags(out, graph, 0:unsigned long long)", "graph_launch": "cuGraphLaunch(exec, stream)",
    "graph_destroy": "cuGraphDestroy(graph)", "exec_destroy": "cuGraphExecDestroy(exec)",
}

HIP: dict[str, str] = cuda_runtime(
    "hip", properties="hipGetDevicePropertiesR0600|hipGetDeviceProperties(text, device)", host_malloc="hipHostMalloc(out, n, 0)",
    host_free="hipHostFree(ptr)", copy_2d="hipMemcpy2DAsync(dst, pitch_d, src, pitch_s, width, height, kind, stream)",
    memset16="hipMemsetD16Async(ptr, value:unsigned short, n, stream)", memset32="hipMemsetD32Async(ptr, value, n, stream)",
) | modules("hip", "ModuleLaunchKernel")
# hipDeviceAttribute_t of HIP 6: an enum of its own, not CUDA's numbers
HIP_ATTRIBUTES = {"max_threads": 56, "grid_x": 29, "grid_y": 30, "grid_z": 31, "multiprocessors": 63, "shared": 74, "warp": 87}
HIP_FORMATS = {"hsaco": (b"\x7fELF", b"__CLANG_OFFLOAD_BUNDLE__")}


def gfx(f: Facts) -> str:
    """The gfx name stands in the properties struct, whose layout moved with HIP 6; the text is found in either."""
    found = re.search(r"gfx[0-9a-f]{3,4}", f.text)
    return found[0] if found else ""
