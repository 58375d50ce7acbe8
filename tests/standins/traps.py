"""One wrong adapter for each trap that vendors' runtimes set: right but for one fact, usually another vendor's.

Each must fail the check of the HAL suite named here, over the vendor's right stand-in; test_vendors.py asserts that all do.
    python tests/standins/traps.py [word ...]      runs those whose name holds a word, and prints what caught them
"""
from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haian.hal.driver import Driver

__all__ = ["INVISIBLE", "TRAPS", "Trap", "caught", "two_threads", "wrong"]


@dataclass(frozen=True)
class Trap:
    """A mistake.  calls: lines of the table that change, "" removes one; table: its other fields; methods: of the driver's class."""

    name: str
    vendor: str
    check: int | tuple[int, ...]  # of the HAL suite, that must fail (one of them, where each sees a race); 0: none can, ``seen`` says what then differs from the right driver
    calls: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    methods: Callable[[type], Mapping[str, Any]] = lambda right: {}
    seen: Callable[[Driver], object] | None = None
    slow: bool = False  # over a stand-in that begins work 20 ms late: nothing can hold a stream there

    def change(self, right: type) -> type:
        calls = {k: v for k, v in {**right.table.calls, **self.calls}.items() if v}  # type: ignore[attr-defined]
        table = replace(right.table, calls=calls, **self.table)  # type: ignore[attr-defined]
        return type(right.__name__, (right,), {"table": table, **self.methods(right)})


def _one_context(right: type) -> dict[str, Any]:
    """The current device is remembered for the process instead of for each thread."""
    def clear(self: Any) -> None:
        right._clear(self)  # type: ignore[attr-defined]
        self._local = SimpleNamespace()
    return {"_clear": clear}


def _plain(*names: str) -> Callable[[type], dict[str, Any]]:
    """Without the vendor's own way for these: the engine's."""
    def methods(right: type) -> dict[str, Any]:
        from haian.adapters.engine import TableDriver
        return {n: getattr(TableDriver, n) for n in names}
    return methods


def _without_codes(vendor: str, *codes: int) -> dict[str, Any]:
    from importlib import import_module
    module = import_module(f"haian.adapters.{vendor}")
    return {"errors": {k: v for k, v in getattr(module, module.__all__[0]).table.errors.items() if abs(k) not in codes}}


def _without_own(vendor: str, *calls: str) -> dict[str, Any]:
    from importlib import import_module
    module = import_module(f"haian.adapters.{vendor}")
    return {"own": {k: v for k, v in getattr(module, module.__all__[0]).table.own.items() if k not in calls}}


def _device_only(right: type) -> dict[str, Any]:
    return {"_make_current": lambda self, device: self._check(self._calls["set_device"](device), "set_device", device)}


def _whole_counts(right: type) -> dict[str, Any]:
    return {"_total": lambda self, device: right._total(self, device) >> 20}  # type: ignore[attr-defined]


def two_threads(driver: Driver) -> bool:
    """Two threads take turns, first both on device 0, then both on 1, and so on: whether every call reached the device it named."""
    import numpy as np
    from haian.hal.driver import Copy

    turns, right = [threading.Semaphore(1), threading.Semaphore(0)], [True, True]
    made: list[tuple[int, int]] = []

    def work(me: int) -> None:
        for step in range(6):
            device = step % 2
            turns[me].acquire()
            try:
                made.append((device, driver.alloc(device, 4096)))
                data, back = np.full(4096, 10 * me + step, np.uint8), np.zeros(4096, np.uint8)
                driver.copy(device, Copy("h2d", made[-1][1], data.ctypes.data, 4096))
                driver.copy(device, Copy("d2h", back.ctypes.data, made[-1][1], 4096))
                if driver.offers("stream"):  # a stream and an event are of the device that was current when they were made
                    stream, event = driver.stream_create(device), driver.event_create(device)
                    driver.event_record(event, stream)
                    driver.stream_sync(stream)
                    driver.event_destroy(event)
                    driver.stream_destroy(stream)
                right[me] &= bool((back == data).all())
            except Exception:  # noqa: BLE001 - whatever a wrong driver raises is its answer
                right[me] = False
            turns[1 - me].release()

    known = driver.offers("mem_info")
    before = [driver.mem_info(d)[0] if known else 0 for d in (0, 1)]
    workers = [threading.Thread(target=work, args=(t,)) for t in (0, 1)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(30)
    used = [before[d] - driver.mem_info(d)[0] if known else 0 for d in (0, 1)]
    for device, address in made:
        driver.free(device, address)
    return all(right) and used == [6 * 4096 * known] * 2


def _facts(driver: Driver) -> object:
    facts = driver.props(0)
    return facts.max_threads, facts.max_grid, facts.max_shared_bytes, facts.triton_target


def _block(driver: Driver) -> object:
    """What a kernel sees of a launch with 1024 threads, which the runtime wants in units."""
    import numpy as np
    from haian.hal.driver import Copy, Launch

    import standins
    module = driver.module_load(0, standins.image("geometry"), driver.props(0).image_format)
    p, said = driver.alloc(0, 28), np.zeros(7, np.uint32)
    driver.launch(0, Launch(driver.get_kernel(module, "geometry"), (1, 1, 1), 1024, 0, [("*i32", p)]))
    driver.sync(0)
    driver.copy(0, Copy("d2h", said.ctypes.data, p, 28))
    return said.tolist()


_CUDA = {"directions": {"h2d": 1, "d2h": 2, "d2d": 3}}
_CNRT = {"directions": {"h2d": 0, "d2h": 2, "d2d": 1}}
_XRE = {"directions": {"h2d": 1, "d2h": 0, "d2d": 2}}
_AUTO = {"directions": {"h2d": 4, "d2h": 4, "d2d": 4}}
_LAUNCH = "aclrtLaunchKernelWithHostArgs"

TRAPS = (
    # ---- numbers of copy directions
    Trap("directions: CUDA's for CNRT", "cambricon", 27, table=_CUDA),
    Trap("directions: CUDA's for XRE", "kunlunxin", 27, table=_CUDA),
    Trap("directions: CNRT's for AscendCL", "ascend", 27, table=_CNRT),
    Trap("directions: XRE's for CNRT", "cambricon", 27, table=_XRE),
    Trap("directions: CNRT's for HIP", "hip", 27, table=_CNRT),
    Trap("directions: XRE's for TOPS", "enflame", 27, table=_XRE),
    Trap("directions: CNRT's for xcudart", "kunlunxin-xcudart", 27, table=_CNRT),
    Trap("directions: an automatic one for TANG", "sunrise", 27, table=_AUTO),
    Trap("directions: an automatic one for CNRT", "cambricon", 27, table=_AUTO),
    Trap("directions: h2d and d2h swapped for MACA", "metax", 27, table={"directions": {"h2d": 2, "d2h": 1, "d2d": 3}}),
    # ---- order and number of arguments
    Trap("order: CUDA's copy for AscendCL, the capacity missing", "ascend", 27, {"copy": "aclrtMemcpy(dst, src:size_t, n:uintptr_t, n, kind)"}),
    Trap("order: a capacity of 0", "ascend", 27, {"copy": "aclrtMemcpy(dst, 0:size_t, src, n, kind)"}),
    Trap("order: the value of AscendCL's memset second", "ascend", 33, {"memset_async": "aclrtMemsetAsync(ptr, value:size_t, n:int, n, stream)"}),
    Trap("order: CNRT's direction before the queue", "cambricon", 39, {"copy_async": "cnrtMemcpyAsync_V3(dst, src, n, kind, stream)"}),
    Trap("order: Biren's kind before the stream", "biren", 39, {"copy_async": "suMemcpyAsync(dst, src, n, kind, stream)"}),
    Trap("order: HIP's stream before the kind", "hip", 39, {"copy_async": "hipMemcpyAsync(dst, src, n, stream, kind)"}),
    Trap("order: CNRT's wait with the queue first", "cambricon", 49, {"stream_wait": "cnrtQueueWaitNotifier(stream, event, 0)"}),
    Trap("order: HIP's wait with the event first", "hip", 49, {"stream_wait": "hipStreamWaitEvent(event, stream, 0)"}),
    Trap("order: CNRT's record with the queue first", "cambricon", 49, {"event_record": "cnrtPlaceNotifier(stream, event)"}),
    Trap("order: CNRT's elapsed time with the output first", "cambricon", 54, {"elapsed": "cnrtNotifierElapsedTime(ms, start, end)"}),
    Trap("order: TOPS's elapsed time with the output last", "enflame", 54, {"elapsed": "topsEventElapsedTime(start, end, ms)"}),
    Trap("order: AscendCL's callback in CUDA's order", "ascend", 46, {"host_func": "aclrtLaunchCallback(stream, fn, user, 1:int)"}),
    Trap("order: XRE's peer copy with pointers before devices", "kunlunxin", 34, {"copy_peer": "xpu_memcpy_peer(dst, dst_device, src, src_device, n)"}),
    Trap("order: CNDrv's module before its image", "cambricon", 66, {"module_load": "cnModuleLoadFatBinary(out, image)"}),
    Trap("order: AscendCL's launch with the stream before the blocks", "ascend", 66,
         {"launch": f"{_LAUNCH}(function, stream, blocks:unsigned, 0:uintptr_t, packed:void *, size, 0:uintptr_t, 0:size_t)"}),
    Trap("arguments: TANG's modules without the image's size", "sunrise", 66, {"module_load": "taModuleLoadData(out, image, 0:size_t)"}),
    Trap("arguments: CUDA's one by one for AscendCL's launch", "ascend", 66, {"launch": "aclrtLaunchKernelWithHostArgs(function, gx, stream, 0:uintptr_t, "
         "params:uintptr_t *, 8:size_t, 0:uintptr_t, 0:size_t)"}, methods=_plain("_run_kernel"),
         table=_without_own("ascend", "launch")),
    Trap("arguments: a launch of CNDrv with CUDA's block", "cambricon", 66,
         {"launch": "cnInvokeKernel(function, gx, gy, gz, 3, 0, stream, params, 0:uintptr_t)"}),
    # ---- flags
    Trap("flags: CUDA's wait with a flag that does not exist", "hip", 49, {"stream_wait": "hipStreamWaitEvent(stream, event, 8)"}),
    Trap("flags: CNRT's wait with a flag that does not exist", "cambricon", 49, {"stream_wait": "cnrtQueueWaitNotifier(event, stream, 8)"}),
    Trap("flags: AscendCL's malloc without its policy", "ascend", 16, {"malloc": "aclrtMalloc(out, n, n:int)"}),
    Trap("flags: XRE's malloc without its kind", "kunlunxin", 16, {"malloc": "xpu_malloc(out, n, n:int)"}),
    Trap("flags: AscendCL's events without 8 have no time", "ascend", 54, {"event_new": "aclrtCreateEventExWithFlag(out, 1)"}),
    Trap("flags: AscendCL's events with CUDA's default", "ascend", 51, {"event_new": "aclrtCreateEventExWithFlag(out, 0)"}),
    Trap("flags: CNRT's notifiers with 4 have no time", "cambricon", 54, {"event_new": "cnrtNotifierCreateWithFlags(out, 4)"}),
    Trap("flags: CNRT's notifiers with CUDA's 3 for no timing", "cambricon", 54, {"event_new_untimed": "cnrtNotifierCreateWithFlags(out, 2)"}),
    Trap("flags: MUSA's events with 2 have no time", "mthreads", 54, {"event_new": "musaEventCreateWithFlags(out, 2)"}),
    Trap("flags: events without timing that have it", "metax", 54, {"event_new_untimed": "mcEventCreateWithFlags(out, 0)"}),
    Trap("flags: CUDA's streams wait for stream 0 by default", "cuda", 45, {"stream_new": "cuStreamCreate(out, 0)"}),
    # ---- what a query says
    Trap("status: AscendCL's stream enum taken for its events'", "ascend", 52, table={"ready_status": {"stream_query": 0, "event_query": 0}}),
    Trap("status: AscendCL's event enum taken for its streams'", "ascend", 41, table={"ready_status": {"stream_query": 1, "event_query": 1}}),
    Trap("status: AscendCL's out-parameters ignored for streams", "ascend", 41, table={"ready_status": {"event_query": 1}}),
    Trap("status: AscendCL's out-parameters ignored for events", "ascend", 52, table={"ready_status": {"stream_query": 0}}),
    Trap("status: AscendCL's wait status for its record status", "ascend", 52, {"event_query": "aclrtQueryEventWaitStatus(event, status)"}),
    Trap("not ready: CNRT's 1 only", "cambricon", 52, table={"not_ready": frozenset({1})}),
    Trap("not ready: CNRT's 632014 only", "cambricon", 41, table={"not_ready": frozenset({632014})}),
    Trap("not ready: CUDA's 600 for CNRT", "cambricon", 41, table={"not_ready": frozenset({600})}),
    Trap("not ready: CUDA's 600 for XRE", "kunlunxin", (55, 57, 63), slow=True, table={"not_ready": frozenset({600})}),
    Trap("not ready: CNRT's 1 for HIP", "hip", 41, table={"not_ready": frozenset({1})}),
    Trap("unit: CNRT's duration in microseconds for its milliseconds", "cambricon", 54, {"elapsed": "cnrtNotifierDuration(start, end, ms)"}),
    Trap("unit: CNRT's memory in MiB taken for bytes", "cambricon", 16, methods=_whole_counts),
    # ---- codes
    Trap("success: 1 is good", "hip", 10, table={"success": 1}),
    Trap("success: 1 is good for XRE", "kunlunxin", 10, table={"success": 1}),
    Trap("memory is out: CUDA's 2 for AscendCL's 207001", "ascend", 18, table=_without_codes("ascend", 207001)),
    Trap("memory is out: CUDA's 2 for CNRT's 100100", "cambricon", 18, table=_without_codes("cambricon", 100100)),
    Trap("memory is out: CUDA's 2 for XRE's 705", "kunlunxin", 18, table=_without_codes("kunlunxin", 705)),
    Trap("memory is out: CUDA's 2 for MACA's 10007", "metax", 18, table=_without_codes("metax", 10007)),
    Trap("memory is out: CUDA's 2 for TANG's 3006", "sunrise", 18, table=_without_codes("sunrise", 3006)),
    Trap("memory is out: CUDA's 2 unknown", "thead", 18, table=_without_codes("thead", 2)),
    Trap("a fault: AscendCL's 507015 is no loss", "ascend", 58, table={"fatal": frozenset()}),
    Trap("a fault: XRE's 714 with the sign it comes with", "kunlunxin", 58, table={"fatal": frozenset({-714}), "errors": {}}),
    # ---- names
    Trap("pinned: freed as device memory in HIP", "hip", 25, {"host_free": "hipFree(ptr)"}),
    Trap("pinned: freed as device memory in AscendCL", "ascend", 25, {"host_free": "aclrtFree(ptr)"}),
    Trap("pinned: freed as device memory in CNRT", "cambricon", 25, {"host_free": "cnrtFree(ptr)"}),
    Trap("pinned: freed as device memory in XRE", "kunlunxin", 25, {"host_free": "xpu_free(ptr)"}),
    Trap("pinned: freed as device memory in TOPS", "enflame", 25, {"host_free": "topsFree(ptr)"}),
    Trap("memory: freed as pinned in MUSA", "mthreads", 23, {"free": "musaFreeHost(ptr)"}),
    Trap("names: the CUDA driver's without _v2", "cuda", 10, {"malloc": "cuMemAlloc(out, n)", "free": "cuMemFree(ptr)"}),
    Trap("names: the prefix supa where it is su", "biren", 10, {"malloc": "supaMalloc(out, n)"}),
    # ---- begin, contexts, devices
    Trap("begin: aclInit is not called", "ascend", 10, {"init": ""}),
    Trap("begin: aclInit's second answer is taken for an error", "ascend", 6, table={"ignore": frozenset()}),
    Trap("begin: cuInit is not called", "cuda", 10, {"driver_init": ""}),
    Trap("begin: muInit is not called", "mthreads", 66, {"driver_init": ""}),
    Trap("begin: cnInit is not called", "cambricon", 61, {"driver_init": ""}),
    Trap("end: AscendCL does not begin again after aclFinalize", "ascend", 6, {"fini": "aclFinalize()"}),
    Trap("context: one for all threads of AscendCL", "ascend", 61, methods=_one_context),
    Trap("context: one for all threads of the CUDA driver", "cuda", 61, methods=_one_context),
    Trap("context: CNRT's device without CNDrv's context", "cambricon", 66, methods=_device_only),
    Trap("device: a CUdevice is not the ordinal", "cuda", 10, {"device_get": ""}),
    Trap("peers: AscendCL's copy before access is enabled", "ascend", 34, methods=_plain("_copy_row")),
    Trap("waiting: XRE's wait for stream 0 taken for the device", "kunlunxin", 44, slow=True, methods=_plain("sync")),
    Trap("waiting: AscendCL's stream 0 taken for the device", "ascend", 44, {"device_sync": "aclrtSynchronizeStream(0:uintptr_t)"}),
    Trap("callbacks: AscendCL's without a thread that takes them", "ascend", 46, methods=_plain("host_func")),
    Trap("memory: AscendCL's DDR asked for where it has HBM", "ascend", 11, {"mem_info": "aclrtGetMemInfo(0:int, free_out, total_out)", "mem_info_ddr": ""}),
    # ---- what no check of the suite can see
    Trap("attributes: CUDA's numbers for MACA", "metax", 0, seen=_facts, table={
        "attributes": {"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "warp": 10, "multiprocessors": 16, "major": 75, "minor": 76, "shared": 97}}),
    Trap("block: threads instead of units for TOPS", "enflame", 0, seen=_block, table={"block_unit": None}),
    Trap("device: one for all threads of HIP", "hip", 0, seen=two_threads, methods=_one_context),
)

# Differences that cannot show as mistakes, and why.
INVISIBLE = {
    "device count as uint32_t": "the same register and four bytes as int",
    "no flag in AscendCL's and TX's wait": "a callee does not see one argument too many; the tables have none",
    "property structs that moved": "no table maps one: names and gfx texts are found in the bytes",
    "memset missing in XRE and TX": "an absent symbol leaves the engine copying patterns; the suite's check 33 passes on both",
    "two libraries named libmccl.so": "told apart by a symbol only the right one has (test_comm)",
}


def wrong(name: str, path: str = "") -> Driver:
    """The driver of a trap, over a stand-in of its own."""
    import standins
    trap = next(t for t in TRAPS if t.name == name)
    if trap.slow:
        path = str(standins.build(trap.vendor, SI_DELAY_US="20000"))
    return standins.driver(trap.vendor, True, trap.change, path)


def caught(trap: Trap, path: str = "") -> str:
    """What the check said; "" where the mistake went unseen.  A driver that finds no device fails check 10 with all others.

    Where nothing holds a stream the check sees a race: it is asked up to 5 times.
    """
    from haian.conformance.hal_runner import check_driver, hal_cases
    from haian.hal.errors import HaianError
    made = wrong(trap.name, path)
    if trap.seen:
        import standins
        right = trap.seen(standins.driver(trap.vendor))
        try:
            got = trap.seen(made)
        except HaianError as error:
            got = error
        return "" if got == right else f"{got} where {right} is right"
    if not made.device_count():
        if trap.check != 10:
            raise AssertionError(f"{trap.name}: no device ({made.why_none}); the trap is not what it says")  # type: ignore[attr-defined]
        return f"no device: {made.why_none}"  # type: ignore[attr-defined]
    numbers = trap.check if isinstance(trap.check, tuple) else (trap.check,)
    chosen = [c for c in hal_cases() if c.check.number in numbers and c.dtype == c.check.modes[0]]
    for _ in range(5 if trap.slow else 1):
        for line in check_driver(wrong, (trap.name, path), chosen=chosen, timeout_s=10):
            if line["result"] in ("fail", "timeout"):
                return f"{line['result']}: {line['message']}"
    return ""


def main(words: list[str]) -> int:
    alive = 0
    for trap in TRAPS:
        if words and not any(w in f"{trap.vendor} {trap.name}" for w in words):
            continue
        said = caught(trap)
        alive += not said
        print(f"{'caught' if said else 'ALIVE '} {trap.check!s:12s} {trap.vendor:18s} {trap.name}: {said[:150]}", flush=True)
    return alive


if __name__ == "__main__":
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from standins import traps  # by the name that another process finds it by
    sys.exit(traps.main(sys.argv[1:]))
