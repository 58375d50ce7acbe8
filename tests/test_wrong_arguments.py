"""Wrong arguments to the HAL's classes: each is haian's own error, on one line, that says what came; nothing wrong passes silently.

Not here: what a driver refuses (test_c_driver.py, test_validate.py), operators (test_api.py).
"""
from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from haian.conformance.hal_checks.check import driver_class
from haian.hal import Communicator, Event, Graph, Module, Stream, copy
from haian.hal.driver import Copy
from haian.hal.errors import (
    ArgumentError,
    DTypeError,
    HaianError,
    InvalidHandle,
    OutOfMemory,
    RanksDiffer,
    Timeout,
    wrong_type,
)
from haian.hal.tensor import asarray, empty

import haian


@pytest.fixture(params=["sim:0", "cpu:0"])
def at(request):
    device = haian.device(request.param)
    x = asarray(np.arange(6, dtype="f4"), device=device)
    closed, freed = device.stream(), device.allocate(64)
    closed.close()
    freed.free()
    made = SimpleNamespace(device=device, x=x, y=empty((6,), "float32", device), stream=device.stream(), event=device.event(), closed=closed, freed=freed,
                           uid=Communicator.unique_id(device))
    yield made
    made.stream.close()


CASES = {
    "allocate str": (lambda a: a.device.allocate("4096"), ArgumentError, "'4096' is a str; needs a whole number"),
    "allocate float": (lambda a: a.device.allocate(3.5), ArgumentError, "3.5 is a float"),
    "allocate stream": (lambda a: a.device.allocate(64, "x"), ArgumentError, "'x' is a str; needs a stream"),
    "allocate closed": (lambda a: a.device.allocate(64, a.closed), InvalidHandle, "closed; make a new one"),
    "allocate much": (lambda a: a.device.allocate(1 << 70), OutOfMemory, "1180591620717411303424 bytes asked for"),
    "freed address": (lambda a: a.freed.address, InvalidHandle, "freed>: it has no address"),
    "freed used_on": (lambda a: a.freed.used_on(a.stream), InvalidHandle, "freed>: its bytes"),
    "used_on str": (lambda a: a.device.allocate(64).used_on("x"), ArgumentError, "a str came; needs a stream"),
    "wait str": (lambda a: a.stream.wait("e"), ArgumentError, "'e' is a str; needs an event"),
    "wait None": (lambda a: a.stream.wait(None), ArgumentError, "None is a NoneType; needs an event"),
    "host_func None": (lambda a: a.stream.host_func(None), ArgumentError, "None is a NoneType; needs a function"),
    "record str": (lambda a: a.event.record("x"), ArgumentError, "'x' is a str; needs a stream"),
    "elapsed str": (lambda a: a.event.elapsed_ns("x"), ArgumentError, "'x' is a str; needs an event"),
    "synchronize nan": (lambda a: a.event.synchronize(float("nan")), ArgumentError, "nan is a float; needs a number of seconds"),
    "synchronize str": (lambda a: a.event.synchronize("x"), ArgumentError, "'x' is a str; needs a number of seconds"),
    "event timing": (lambda a: a.device.event("no"), ArgumentError, "'no' is a str; needs True or False"),
    "Stream": (lambda a: Stream("zz"), ArgumentError, "Stream: 'zz' is a str; needs a device"),
    "Event": (lambda a: Event("zz"), ArgumentError, "Event: 'zz' is a str; needs a device"),
    "Graph": (lambda a: Graph("zz"), ArgumentError, "Graph: 'zz' is a str; needs a device"),
    "capture str": (lambda a: Graph.capture("x").__enter__(), ArgumentError, "'x' is a str; needs a stream"),
    "Module device": (lambda a: Module("zz", b""), ArgumentError, "Module: 'zz' is a str; needs a device"),
    "Module None": (lambda a: Module(a.device, None), ArgumentError, "None is a NoneType; needs bytes"),
    "Module int": (lambda a: Module(a.device, 3), ArgumentError, "3 is a int; needs bytes"),
    "Module str": (lambda a: Module(a.device, "ttir"), ArgumentError, "'ttir' is a str; needs bytes"),
    "Module format": (lambda a: Module(a.device, b"", 3), ArgumentError, "3 is a int; needs a name"),
    "copy str": (lambda a: copy("a", a.x), ArgumentError, "copy: dst: 'a' is a str; needs a haian tensor"),
    "copy None": (lambda a: copy(a.y, None), ArgumentError, "copy: src: None is a NoneType"),
    "copy NumPy": (lambda a: copy(np.zeros(6, "f4"), a.x), ArgumentError, "copy: dst: array.* is a ndarray; needs a haian tensor, see haian.asarray"),
    "copy from NumPy": (lambda a: copy(a.y, np.zeros((40, 6), "f4")), ArgumentError, "copy: src: array.* is a ndarray"),
    "copy dtype": (lambda a: copy(empty((6,), "int32", a.device), a.x), DTypeError, "src is float32, dst is int32; cast first"),
    "copy stream": (lambda a: copy(a.y, a.x, "s"), ArgumentError, "copy: stream: 's' is a str"),
    "copy closed": (lambda a: copy(a.y, a.x, a.closed), InvalidHandle, "closed; make a new one with device.stream"),
    "copy blocking": (lambda a: copy(a.y, a.x, None, "no"), ArgumentError, "copy: blocking: 'no' is a str; needs True or False"),
    "comm rank": (lambda a: Communicator(a.device, 2, "a", a.uid), ArgumentError, "rank 'a' of 2; needs two whole numbers"),
    "comm uid": (lambda a: Communicator(a.device, 2, 0, "a" * 128), ArgumentError, "is a str; needs the bytes that Communicator.unique_id"),
    "comm timeout str": (lambda a: Communicator(a.device, 2, 0, a.uid, timeout_s="x"), ArgumentError, "'x' is a str; needs a number of seconds"),
    "comm timeout nan": (lambda a: Communicator(a.device, 2, 0, a.uid, timeout_s=float("nan")), ArgumentError, "timeout_s=nan; needs a number above 0, at most 1e"),
    "comm timeout": (lambda a: Communicator.local([a.device, a.device], timeout_s=1e308), ArgumentError, "timeout_s=1e.308; needs a number above 0, at most 1e"),
    "comm device": (lambda a: Communicator("zz", 1, 0, a.uid), ArgumentError, "device 'zz'"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments(name, at):
    call, error, words = CASES[name]
    with pytest.raises(error) as said:
        call(at)
    assert isinstance(said.value, HaianError) and "\n" not in str(said.value) and re.search(words, str(said.value)), str(said.value)
    assert (haian.ops.add(at.x, at.x).numpy() == 2 * np.arange(6)).all()  # the device works on


def test_a_closed_stream_takes_no_launch_and_no_replay(at):
    with pytest.raises(InvalidHandle, match="closed; make a new one"):
        Graph(at.device).launch(at.closed)


def test_long_waits_are_cut_to_what_clocks_count(at):
    at.event.record(at.stream)
    at.event.synchronize(1e300)
    at.event.synchronize(-5)


def test_a_device_tensor_is_no_buffer():
    x = asarray([1.0], device="sim:0")
    with pytest.raises(BufferError, match="on sim:0 has no buffer"):
        memoryview(x)


@pytest.mark.parametrize("change", [{"nbytes": -1}, {"rows": -1}, {"nbytes": -(1 << 40), "rows": 3}])
@pytest.mark.parametrize("kind", ["sim", "cpu"])
def test_drivers_in_this_process_refuse_negative_sizes_themselves(kind, change):
    """Without the validation layer: a memmove of -1 bytes ends the process."""
    driver = driver_class(kind)()
    address, data = driver.alloc(0, 4096), np.zeros(4096, np.uint8)
    for stream in (0, driver.stream_create(0)):
        with pytest.raises(ArgumentError, match="needs 0 or more"):
            driver.copy(0, Copy("h2d", address, data.ctypes.data, 64)._replace(**change), stream)
        with pytest.raises(ArgumentError, match="fill of -4 bytes"):
            driver.fill(0, address, b"abcd", -4, stream)
    driver.fini()


def test_roots_and_peers():
    for comm in Communicator.local(["cpu"]):
        for wrong in ("a", None, 1.0, 7, -1):
            with pytest.raises(ArgumentError, match="needs 0 to 0"):
                comm.broadcast(asarray([1.0]), root=wrong)
        comm.close()


def test_ranks_that_differ_are_no_mere_timeout():
    """Seen at once; a Timeout all the same, since a transport that cannot see it waits."""
    assert issubclass(RanksDiffer, Timeout) and RanksDiffer.code == Timeout.code


def test_what_came_is_shown_on_one_line():
    said = str(wrong_type("f: x", np.zeros((30, 30)), "an int"))
    assert "\n" not in said and said.endswith("... is a ndarray; needs an int") and len(said) < 120
