"""hal/c_driver.py and hal/include/haian_hal.h: drivers in C behind the Driver class, old and new tables under one host."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from haian.hal.c_driver import CDriver, header
from haian.hal.device import Device
from haian.hal.driver import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    GROUPS,
    HOST_TO_DEVICE,
    PEER,
    Copy,
    Driver,
    Launch,
    offers,
)
from haian.hal.errors import (
    ArgumentError,
    EnvironmentMissing,
    HaianError,
    InternalError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Unsupported,
    VersionMismatch,
)
from haian.hal.registry import Registry
from haian.hal.validate import validate

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "hal" / "include"

KERNELS = r"""
#include <stdint.h>
void scale(const void *const *a, const uint32_t grid[3], const uint32_t p[3]) {
  (void)grid;
  float *x = *(float *const *)a[0];
  const float by = *(const float *)a[1];
  const int64_t n = *(const int32_t *)a[2];
  for (int64_t i = p[0] * 64; i < n && i < p[0] * 64 + 64; i++) x[i] *= by;
}
"""


def build(source: str | Path, out: Path, *flags: str) -> Path:
    """A shared object from a C file or text."""
    if isinstance(source, str):
        text, source = source, out.with_suffix(".c")
        source.write_text(text)
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{INCLUDE}", *flags,
                    str(source), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def minimal(folder):
    return build(ROOT / "examples/minimal_adapter/minimal.c", folder / "minimal.so")


@pytest.fixture(scope="module")
def inline(folder):
    return build(ROOT / "examples/inline_adapter/inline.c", folder / "inline.so")


def read(driver: Driver, address: int, n: int, device: int = 0, stream: int = 0) -> bytes:
    out = bytearray(n)
    view = np.frombuffer(out, np.uint8)
    driver.copy(device, Copy(DEVICE_TO_HOST, view.ctypes.data, address, n), stream)
    return bytes(out)


def write(driver: Driver, address: int, data: bytes, device: int = 0, stream: int = 0) -> None:
    view = np.frombuffer(data, np.uint8)
    driver.copy(device, Copy(HOST_TO_DEVICE, address, view.ctypes.data, len(data)), stream)


def test_the_header_is_plain_c_and_names_every_method_of_the_page(folder):
    build("#include <haian_hal.h>\n", folder / "header.so", "-pedantic")
    text = header()
    assert "#" not in text and "size_t" not in text and "bool " not in text.replace("bool 1", "")
    for group in ("stream", "event", "module", "graph", "comm", "ipc", "prof", "op"):
        assert f"hal_{group}" in text, group


def test_the_smallest_driver(minimal):
    driver = CDriver(minimal)
    assert (driver.name, driver.device_count()) == ("minimal", 2)
    facts = driver.props(1)
    assert facts.uuid == "minimal-1" and facts.peer and not facts.streams and facts.host_access
    assert [g for g in GROUPS if offers(driver, g)] == ["mem_info"]
    a, b = driver.alloc(0, 100), driver.alloc(1, 100, 4096)
    assert b % 4096 == 0
    data = os.urandom(100)
    write(driver, a, data)
    driver.copy(0, Copy(PEER, b, a, 100, dst_device=1))
    assert read(driver, b, 100, 1) == data
    assert driver.mem_info(0) == ((1 << 30) - 100, 1 << 30)
    driver.free(0, a)
    driver.free(1, b)
    assert driver.mem_info(0)[0] == 1 << 30
    with pytest.raises(Unsupported, match="fill"):
        driver.fill(0, a, b"x", 1)


@pytest.mark.parametrize("call, error", [
    (lambda d: d.alloc(0, 0), ArgumentError), (lambda d: d.alloc(0, -5), ArgumentError), (lambda d: d.alloc(0, 64, 3), ArgumentError),
    (lambda d: d.alloc(0, (1 << 28) + 1), OutOfMemory), (lambda d: d.alloc(0, 1 << 63), OutOfMemory), (lambda d: d.alloc(2, 64), ArgumentError),
    (lambda d: d.alloc(-1, 64), ArgumentError), (lambda d: d.props(7), ArgumentError), (lambda d: d.alloc(0, 1 << 65), ArgumentError),
    (lambda d: d.copy(0, Copy("up", 1, 1, 1)), ArgumentError), (lambda d: d.copy(0, Copy(DEVICE_TO_DEVICE, 1, 1, 0), 99), InvalidHandle),
    (lambda d: d.copy(0, ("h2d", 1)), TypeError), (lambda d: d.free(0), TypeError), (lambda d: d.alloc("x", 1), ArgumentError),
    (lambda d: d.free(0, "a"), ArgumentError), (lambda d: d.copy(0, Copy("h2d", 64, 64, -1)), ArgumentError),
    (lambda d: d.copy(0, Copy("h2d", 64, 64, 1, -1)), ArgumentError), (lambda d: d.copy(0, Copy("h2d", "a", 64, 1)), ArgumentError),
    (lambda d: d.pool_trim(0, -1), Unsupported),
])
def test_refusals_name_driver_and_call(minimal, call, error):
    driver = CDriver(minimal)
    with pytest.raises(error, match="minimal|integer"):
        call(driver)


def test_streams_events_and_kernels(inline, folder):
    driver = CDriver(inline)
    assert driver.device_count() == 2
    assert [g for g in GROUPS if offers(driver, g)] == ["fill", "mem_info", "stream", "event", "module"]
    streams = [driver.stream_create(1) for _ in range(3)]
    assert len(set(streams)) == 3 and all(s >> 56 == 1 for s in streams)
    start, end = driver.event_create(1), driver.event_create(1)
    with pytest.raises(NotReady):
        driver.event_elapsed_ns(start, end)
    driver.event_record(start, streams[0])
    image = build(KERNELS, folder / "kernels.so").read_bytes()
    module = driver.module_load(1, image, "so")
    kernel = driver.get_kernel(module, "scale")
    x = np.arange(200, dtype=np.float32)
    address = driver.alloc(1, x.nbytes)
    write(driver, address, x.tobytes(), 1, streams[0])
    driver.launch(1, Launch(kernel, (4, 1, 1), 1, 0, (("*fp32", address), ("fp32", 2.5), ("i32", 200))), streams[0])
    driver.event_record(end, streams[0])
    assert np.array_equal(np.frombuffer(read(driver, address, x.nbytes, 1, streams[0]), np.float32), x * np.float32(2.5))
    assert driver.event_query(end) and driver.event_elapsed_ns(start, end) > 0 > driver.event_elapsed_ns(end, start)
    called = []
    driver.host_func(streams[0], lambda: called.append(threading.get_ident()))
    driver.stream_sync(streams[0])
    assert called
    with pytest.raises(ArgumentError):
        driver.module_load(1, image[:100], "so")
    with pytest.raises(EnvironmentMissing):
        driver.get_kernel(module, "gone")
    for bad in ((0, 1, 1), (1, 1, 2**33)):
        with pytest.raises(ArgumentError):
            driver.launch(1, Launch(kernel, bad, 1, 0, ()), 0)
    with pytest.raises(InvalidHandle, match="of device 1"):
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, ()), 0)
    with pytest.raises(InvalidHandle, match="of device 1"):
        driver.fill(0, address, b"a", 1, streams[0])
    for s in streams:
        driver.stream_destroy(s)
        with pytest.raises(InvalidHandle):
            driver.stream_sync(s)
    again = driver.stream_create(1)
    assert again not in streams


def test_a_host_function_that_raises_does_not_unwind_through_c(inline, caplog):
    driver = CDriver(inline)
    driver.device_count()
    native, streams = driver.stream_sync, [driver.stream_create(0) for _ in range(2)]
    for deliver in (driver.stream_sync, driver.stream_query):
        driver.host_func(streams[0], lambda: 1 / 0)
        driver.stream_sync(streams[1])
        with pytest.raises(InternalError, match="a host function raised ZeroDivisionError"):  # by its stream, once
            getattr(driver, deliver.__name__)(streams[0])
        assert driver.stream_query(streams[0]) is True
    assert driver.stream_sync == native, "back to the native method when none is about"
    driver.host_func(0, lambda: 1 / 0)
    assert "ZeroDivisionError" in caplog.text
    for stream in streams:
        driver.stream_destroy(stream)


# ---- evolution: rule 2 of the header ------------------------------------------------------------------------------------
VARIANT = r"""
#define hal_get_adapter inner
#include "{source}"
#undef hal_get_adapter
struct {{ hal_adapter a; uint64_t later[8]; }} grown;
struct {{ hal_mem m; void *later[4]; }} mem2;
HAL_EXPORT const hal_adapter *hal_get_adapter(const hal_host *host) {{
  (void)inner;
  grown.a = adapter;
  grown.a.name = "variant";
  mem2.m = mem;
  {change}
  grown.a.mem = &mem2.m;
  return host && host->abi_major == HAL_ABI_MAJOR ? &grown.a : NULL;
}}
"""


@pytest.mark.parametrize("change, groups", [
    ("grown.a.struct_size = sizeof grown; mem2.m.struct_size = sizeof mem2; grown.later[0] = 1;", "fill mem_info stream event module"),
    ("grown.a.struct_size = offsetof(hal_adapter, event); mem2.m.struct_size = offsetof(hal_mem, fill);", "stream"),
    ("grown.a.struct_size = offsetof(hal_adapter, stream); mem2.m.struct_size = offsetof(hal_mem, info);", "fill"),
    ("grown.a.abi_minor = 99; mem2.m.info = NULL; grown.a.module = NULL;", "fill stream event"),
])
def test_smaller_and_larger_tables_load_under_one_host(folder, change, groups):
    name = f"variant{abs(hash(change))}.so"
    text = "#include <stddef.h>\n" + VARIANT.format(source=ROOT / "examples/inline_adapter/inline.c", change=change)
    driver = CDriver(build(text, folder / name, "-Wno-missing-field-initializers"))
    assert driver.device_count() == 2
    assert [g for g in GROUPS if offers(driver, g)] == groups.split()
    address = driver.alloc(0, 64)
    write(driver, address, b"q" * 64)
    assert read(driver, address, 64) == b"q" * 64


@pytest.mark.parametrize("change, error, words", [
    ("grown.a.abi_major = 2;", VersionMismatch, "ABI 2.0"), ("mem2.m.copy = NULL;", ArgumentError, "group mem lacks copy"),
    ("grown.a.core = NULL;", ArgumentError, "no core group"), ('grown.a.name = "";', ArgumentError, "no name"),
    ("mem2.m.struct_size = offsetof(hal_mem, copy);", ArgumentError, "group mem lacks copy: hal_mem.struct_size is 24"),
    ("grown.a.struct_size = 8;", ArgumentError, "hal_adapter.struct_size is 8, which ends before name"),
    ("grown.a.struct_size = 0;", ArgumentError, "hal_adapter.struct_size is 0, which ends before name"),
])
def test_a_broken_table_is_refused(folder, change, error, words):
    text = "#include <stddef.h>\n" + VARIANT.format(source=ROOT / "examples/inline_adapter/inline.c", change=change)
    with pytest.raises(error, match=words):
        CDriver(build(text, folder / f"broken{abs(hash(change))}.so"))


@pytest.mark.parametrize("validated", [False, True])
def test_an_alloc_that_gives_address_0_is_the_drivers_fault(folder, validated):
    """Without the layer too: the host would write there."""
    text = (ROOT / "examples/inline_adapter/inline.c").read_text().replace("return *out = (uintptr_t)base, HAL_OK;", "return *out = 0, HAL_OK;")
    driver = CDriver(build(text, folder / "zero.so"))
    driver.device_count()
    with pytest.raises(InternalError, match="inline: alloc of 64 bytes succeeded and gave address 0"):
        (validate(driver) if validated else driver).alloc(0, 64)
    device = Device(validate(driver) if validated else driver, 0, 99)
    with pytest.raises(InternalError, match="gave address 0"):
        device.allocate(64)


def test_an_unknown_status_does_not_pass_an_old_message_for_its_own(folder):
    text = (ROOT / "examples/inline_adapter/inline.c").read_text().replace("static hal_status stream_done(int32_t d, hal_handle s) {",
                                                                           "static hal_status stream_done(int32_t d, hal_handle s) {\n  if (s) return 4711;")
    driver = CDriver(build(text, folder / "unknown.so"))
    driver.device_count()
    stream = driver.stream_create(0)
    with pytest.raises(ArgumentError, match="at least 1 byte"):
        driver.alloc(0, 0)
    with pytest.raises(InternalError, match=r"inline: stream_query: .*status code 4711 is unknown.*may be of an earlier failure"):
        driver.stream_query(stream)


def test_a_file_that_cannot_be_loaded_says_so_once(folder):
    path = folder / "text.so"
    path.write_text("no library\n")
    with pytest.raises(EnvironmentMissing) as said:
        CDriver(path)
    assert str(said.value).count(str(path)) == 1 and "find_library" not in str(said.value)


def test_numbers_that_cffi_refuses(inline):
    driver = CDriver(inline)
    driver.device_count()
    for call in (lambda: driver.fill(0, 64, b"a", -1), lambda: driver.fill(0, "a", b"a", 1)):
        with pytest.raises((ArgumentError, TypeError)) as said:
            call()
        assert "\n" not in str(said.value)
    with pytest.raises(ArgumentError, match="inline: fill: .*needs numbers"):
        driver.fill(0, 64, b"a", -1)


@pytest.mark.parametrize("device", [2**31, 2**32, -2**32, 2**63, -2**31 - 1, -2**63])
def test_devices_beyond_32_bits_are_not_cut_to_another(inline, device):
    driver = CDriver(inline)
    driver.device_count()
    address = driver.alloc(0, 64)
    for call, run in {"sync": lambda: driver.sync(device), "alloc": lambda: driver.alloc(device, 64), "free": lambda: driver.free(device, address),
                      "copy": lambda: driver.copy(device, Copy("d2d", address, address, 8)), "launch": lambda: driver.launch(device, Launch(1, (1, 1, 1), 1, 0, ())),
                      "copy ": lambda: driver.copy(0, Copy("peer", address, address, 8, 1, 8, 8, device))}.items():
        with pytest.raises(ArgumentError, match=f"inline: {call.strip()}: device {device if device < 2**63 else device - 2**64}; needs one that fits 32 bits"):
            run()
    driver.free(0, address)


def test_threads_shared_bytes_and_rows_are_not_cut(inline, folder):
    driver = CDriver(inline)
    driver.device_count()
    kernel = driver.get_kernel(driver.module_load(0, build(KERNELS, folder / "kernels32.so").read_bytes(), "so"), "scale")
    for threads, shared, words in ((2**32 + 1, 0, "4294967297 threads"), (1, 2**32, "4294967296 bytes of shared memory"), (2**64 - 1, 0, "threads; needs")):
        with pytest.raises(ArgumentError, match=f"launch: .*{words}"):
            driver.launch(0, Launch(kernel, (1, 1, 1), threads, shared, ()))
    address = driver.alloc(0, 64)
    for rows, nbytes in ((2**64 - 1, 8), (-1, 8), (1, 2**63)):
        with pytest.raises(ArgumentError, match="copy"):
            driver.copy(0, Copy("d2d", address, address, nbytes, rows, 8, 8))
    with pytest.raises(ArgumentError, match="copy kind that is no text"):
        driver.copy(0, Copy("\ud800", address, address, 8))
    with pytest.raises(ArgumentError, match="argument 0 is no"):
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, (("\ud800", 1),)))
    driver.free(0, address)


def test_communicators_of_no_world_and_of_no_dtype(inline):
    driver = CDriver(inline)
    driver.device_count()
    for world, rank in ((0, 0), (-3, 0), (1, 5), (2, -1), (1 << 31, 0)):
        with pytest.raises(ArgumentError, match="comm_init of rank .*; needs 0 <= rank < world"):
            driver.comm_init(0, world, rank, b"")
    for call in (lambda: driver.comm_all_gather(0, 0, 0, 1, "float33", 0), lambda: driver.comm_send(0, 0, 1, "float33", 0, 0)):
        with pytest.raises(ArgumentError, match="dtype 'float33'; one of"):
            call()


def test_a_list_of_arguments_may_change_while_it_is_read(inline, folder):
    driver = CDriver(inline)
    driver.device_count()
    kernel = driver.get_kernel(driver.module_load(0, build(KERNELS, folder / "kernels_list.so").read_bytes(), "so"), "scale")
    address = driver.alloc(0, 64)
    write(driver, address, np.ones(16, np.float32).tobytes())
    args: list = []

    class Clears:
        def __float__(self):
            args.clear()
            return 3.0

    args += [("*fp32", address), ("fp32", Clears()), ("i32", 16)] + [("fp32", float(i)) for i in range(20)]
    driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, args))
    assert not args and (np.frombuffer(read(driver, address, 64), np.float32)[:1] == 3).all()
    driver.free(0, address)


def test_set_dtypes_takes_a_copy_of_its_list():
    """In a process of its own: the end of an old object runs code that clears the list."""
    code = """
from haian import _native
from haian.hal.dtype import ALL
class Clears:
    def __del__(self): table.clear()
old = [None] * ALL[0].code + [Clears() for _ in ALL]
_native.set_dtypes(old); del old
table = [None] * ALL[0].code + list(ALL)
_native.set_dtypes(table)
print(len(table))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_output_structs_keep_the_callers_tail(minimal):
    driver = CDriver(minimal)
    ffi, props = driver.ffi, driver.table.core.props
    whole = ffi.sizeof("hal_props")
    for size in (8, 72, whole - 8, whole):
        memory = ffi.new("uint8_t[]", b"\xa5" * (whole + 64))
        p = ffi.cast("hal_props *", memory)
        p.struct_size = size
        assert props(0, p) == 0 and p.struct_size <= size
        assert bytes(memory)[size:whole + 64] == b"\xa5" * (whole + 64 - size), size


def test_last_error_is_of_the_thread_and_cut(minimal):
    driver = CDriver(minimal)
    with pytest.raises(HaianError):
        driver.alloc(0, 0)
    mine = driver.last_error()
    other: list[str] = []
    thread = threading.Thread(target=lambda: other.append(driver.last_error()))
    thread.start()
    thread.join()
    assert mine and other == [""] and driver.last_error(6) == mine[:5]


def test_another_host_version_gets_null(minimal):
    with pytest.raises(VersionMismatch, match="refuses"):
        CDriver(minimal, host_major=7)


@pytest.mark.parametrize("size", [8, 16, 1 << 20])
def test_hosts_of_other_sizes_are_taken(minimal, size):
    if size < 12:  # a host that does not even say its version
        with pytest.raises(VersionMismatch):
            CDriver(minimal, host_size=size, host_major=0)
    else:
        assert CDriver(minimal, host_size=size).device_count() == 2


# ---- loading ------------------------------------------------------------------------------------------------------------
def test_the_registry_loads_a_shared_object(inline, monkeypatch, tmp_path):
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", str(inline))
    found = {d.name for d in Registry().devices()}
    assert {"inline:0", "inline:1"} <= found
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"\x7fELF nothing")
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", os.pathsep.join([str(bad), str(inline)]))
    registry = Registry()
    assert "inline:0" in {d.name for d in registry.devices()}
    row = next(r for r in registry.report() if r["name"] == "bad")
    assert row["status"] == "failed" and "hal_get_adapter" in row["error"]


def test_tensors_and_operators_on_a_driver_in_c(inline):
    """In a process of its own, since a device once loaded stays."""
    code = (f"import haian, numpy as np\nhaian.load_adapter({str(inline)!r})\n"
            "haian.set_fallback('allow') if hasattr(haian, 'set_fallback') else None\n"
            "x = haian.asarray(np.arange(12, dtype='float32').reshape(3, 4), device='inline:1')\n"
            "assert (x.numpy() == np.arange(12).reshape(3, 4)).all()\n"
            "y = x[:, 1:3].to('inline:0')\nassert y.numpy().tolist() == [[1, 2], [5, 6], [9, 10]]\nprint('ok')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "ok", run.stderr


def test_operators_of_a_vendors_library_in_c(folder):
    """The op group of a table becomes candidates: before the host, and before Triton where the library says preferred."""
    chip = build(ROOT / "tests/library_chip.c", folder / "library.so")
    code = (f"import haian, numpy as np\nfrom haian.kernels.dispatch import chosen, counters\nhaian.load_adapter({str(chip)!r})\n"
            "haian.set_fallback_policy('error')\n"
            "a = np.arange(12, dtype='float32').reshape(3, 4)\n"
            "x, y = haian.asarray(a, device='library:1'), haian.asarray(a[0], device='library:1')\n"
            "assert (haian.ops.add(x.T, y[:3]).numpy() == (a.T + a[0, :3])).all()\n"
            "assert (haian.ops.neg(x.T).numpy() == -a.T).all()\n"
            "assert 'add__library_library' in str(haian.explain(haian.ops.add, x, y))\n"
            "assert not counters, counters\n"
            "try:\n    haian.ops.exp(x)\nexcept haian.HaianError as e:\n    assert 'exp' in str(e)\nelse:\n    raise SystemExit('exp ran')\nprint('ok')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "ok", run.stderr
