"""What goes wrong on one device says so in one line, and the next operation on another device works.

Out of memory, a lost device, a stream that hangs, plugins that crash, hang or are of another version, a truncated image, an unknown
kernel: each in a process of its own, with the simulated chip beside the host.
"""
from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

START = """
import threading, numpy as np, haian
from haian.hal.errors import *
from haian.hal.module import Module
from haian.hal.stream import Event, Stream
sim, other = haian.device("sim:0"), haian.device("sim:1")

def fails(error, words, call):
    try:
        call()
    except error as found:
        text = str(found)
        assert type(found) is error and "\\n" not in text and all(w in text for w in words), (type(found), text)
        print(text)
    else:
        raise SystemExit(f"no {error.__name__}")

def works(*devices):
    for device in devices:
        x = haian.asarray(np.arange(5, dtype="f"), device=device)
        assert haian.ops.add(x, x).cpu().numpy().tolist() == [0, 2, 4, 6, 8], device
"""
IMAGE = 'b"module {\\n  tt.func public @nothing(%x: !tt.ptr<f32>) {\\n    tt.return\\n  }\\n}\\n"'
SCENES = {
    "out_of_memory": """
        fails(OutOfMemory, ("sim:0",), lambda: haian.empty((1 << 40,), "float32", device="sim:0"))
        works("sim:0", "cpu:0", "sim:1")
        sim.driver.fail_next_alloc(0)
        works("cpu:0", "sim:1")""",
    "device_lost": """
        x = haian.asarray(np.ones(4, "f"), device="sim:0")
        sim.driver.lose_device(0)
        fails(DeviceLost, ("sim",), lambda: x.cpu().numpy())
        fails(DeviceLost, ("sim",), lambda: haian.asarray(np.ones(4, "f"), device="sim:0"))
        works("cpu:0", "sim:1")""",
    "hung_stream": """
        stream, gate = Stream(sim), threading.Event()
        stream.host_func(gate.wait)
        mark = stream.record()
        fails(Timeout, ("did not complete",), lambda: mark.synchronize(0.05))
        works("cpu:0", "sim:1")
        gate.set()
        mark.synchronize(20)
        works("sim:0")""",
    "truncated_image": f"""
        whole = {IMAGE}
        fails(ArgumentError, ("TTIR",), lambda: Module(sim, whole[:40], "ttir"))
        Module(sim, whole, "ttir")
        works("sim:0", "cpu:0", "sim:1")""",
    "unknown_kernel": f"""
        module = Module(sim, {IMAGE}, "ttir")
        fails(ArgumentError, ("nowhere",), lambda: module.kernel("nowhere"))
        module.kernel("nothing")
        works("sim:0", "cpu:0", "sim:1")""",
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_next_operation_elsewhere_works(scene):
    pytest.importorskip("triton", reason="operators on the simulated chip are Triton kernels")
    done = subprocess.run([sys.executable, "-c", START + textwrap.dedent(SCENES[scene])], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


PLUGINS = {
    "crashes": ("#include <stddef.h>\nvoid *hal_get_adapter(void *h) { return *(void *volatile *)(size_t)((size_t)h & 8); }", "died of SIGSEGV"),
    "other_version": ("#include <stddef.h>\nvoid *hal_get_adapter(void *h) { (void)h; return NULL; }", "ABI"),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_that_fails_leaves_the_others(plugin, tmp_path):
    text, words = PLUGINS[plugin]
    made = tmp_path / f"{plugin}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O0", "-x", "c", "-", "-o", str(made)], input=text, text=True, check=True)
    code = START.partition("sim, other")[0] + START[START.index("def fails"):] + textwrap.dedent("""
        assert {"cpu:0", "sim:0"} <= {d.name for d in haian.devices()}
        works("cpu:0")
        from haian.hal.registry import report
        (reason,) = [str(row["error"]) for row in report() if PLUGIN in str(row)]
        assert "\\n" not in reason and WORDS in reason, reason
        print(reason)""").replace("PLUGIN", repr(plugin)).replace("WORDS", repr(words))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "HAIAN_ADAPTER_PATH": str(made)})
    assert done.returncode == 0, done.stdout + done.stderr
