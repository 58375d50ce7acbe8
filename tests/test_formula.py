"""The scalar language: what it accepts, and that its three readings (C, Triton, float64) say the same.

The C reading also runs as kernels in test_pointwise.py; here its text is looked at.  Triton's runs in the interpreter.
"""
from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
from haian.kernels.ops import OPS
from haian.kernels.ops.formula import FormulaError, m, magnitude, read

HALF = 0.5


def scaled(x, *, by=2):
    return x * by


def example(x, y, *, low=None, mode: Literal["plain", "soft"] = "plain"):
    """An example."""
    z = scaled(x, by=3) - y
    if mode == "soft":
        return m.tanh(HALF * z)
    return z if low is None else m.maximum(z, low)


def selects(keep: bool, x):
    return m.where(keep & (x > 0), x, -x)


def test_reads_parameters_and_choices():
    f = read(example)
    assert f.tensors == ("x", "y") and f.attrs == {"low": None, "mode": "plain"} and f.choices == {"mode": ("plain", "soft")}
    assert len(f.variants()) == 4
    assert f.body(mode="soft").attrs == () and f.body(low=1.0).attrs == (("low", 0),)
    assert read(selects).booleans == {"keep"} and not read(selects).body().boolean


def test_c_of_floats_and_integers():
    steps, value = read(example).body(low=1.0).c_lines("f32")
    assert steps == ["const float z = ((x * 3.0f) - y);"] and value == "haian_maxf(z, low)"
    steps, value = read(example).body(low=1.0).c_lines("i16")
    assert steps == ["const int16_t z = haian_sub_i16(haian_mul_i16(x, 3), y);"] and value == "haian_max_i16(z, low)"
    assert read(selects).body().c_lines("f64")[1] == "((keep & (x > 0.0)) ? x : (-x))"


def test_c_refuses_what_integers_cannot_do():
    with pytest.raises(FormulaError, match="tanh is for floating"):
        read(scaled_tanh).body().c_lines("i32")
    with pytest.raises(FormulaError, match="0.5 has no integer form"):
        read(halves).body().c_lines("i32")


def scaled_tanh(x):
    return m.tanh(x)


def halves(x):
    return x * HALF


def test_triton_source():
    assert read(example).body(mode="soft").triton_source() == (
        "def example_soft_formula(x, y):\n    z = ((x * 3) - y)\n    return m.tanh((0.5 * z))\n")
    assert "m.div(m.like(1.0, x), x)" in read(OPS["reciprocal"].formula).body().triton_source()
    invert = read(OPS["bitwise_not"].formula).body()
    assert "(~x)" in invert.triton_source() and "(x == 0)" in invert.triton_source(truth=True)


def test_evaluates_and_watches_magnitudes():
    x, y = np.array([1.0, -2.0, 1e10]), np.array([0.5, 0.25, 3e10])
    assert np.array_equal(read(example)(x, y), 3 * x - y)
    assert np.array_equal(read(example)(x, y, mode="soft"), np.tanh((3 * x - y) / 2))
    assert np.array_equal(magnitude(example, x, y), [3.0, 6.25, 3e10]), "3e10 - 3e10 cancels: the product counts"
    taken = magnitude(OPS["lerp"].formula, np.float64(1.0), np.float64(3.0), np.float64(0.25))
    assert taken == 2.0, "the branch that is not taken does not count"


@pytest.mark.parametrize("name", [n for n, o in OPS.items() if o.golden])
def test_golden_points(name):
    """Formula and reference at points computed elsewhere."""
    op = OPS[name]
    for *x, want in op.golden:
        x, attrs = [np.float64(v) for v in x], op.attributes({})
        for got in (op.reference(*x, **attrs), read(op.formula)(*x, **attrs)):
            assert math.isclose(got, want, rel_tol=4e-15), (name, x, got, want)


# each is outside the language; the comment says what the message must name
def uses_power(x):
    return x**2  # Pow


def uses_unknown(x):
    return x + unknown  # unknown  # noqa: F821


def branches_on_value(x):
    if x > 0:  # condition on values
        return x
    return -x


def chains(x):
    return m.where(0 < x < 1, x, 0.0)  # Compare


def assigns_twice(x):
    y = x + 1
    y = y * 2  # y again
    return y


def calls_elsewhere(x):
    return math.exp(x)  # math.exp


def adds_conditions(x):
    return x + (x > 0)  # arithmetic on a condition


def wrong_arity(x):
    return m.exp(x, x)  # m.exp with 2


def no_return(x):
    y = x + 1  # final return  # noqa: F841


REFUSED = [(uses_power, "Pow", 1), (uses_unknown, "unknown", 1), (branches_on_value, "condition on values", 1), (chains, "Compare", 1),
           (assigns_twice, "y again", 2), (calls_elsewhere, "math.exp", 1), (adds_conditions, "arithmetic on a condition", 1),
           (wrong_arity, "m.exp with 2", 1), (no_return, "final return", 1)]


@pytest.mark.parametrize("fn,words,line", REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_errors_name_file_line_and_construct(fn, words, line):
    with pytest.raises(FormulaError) as caught:
        read(fn).body()
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{fn.__code__.co_firstlineno + line}: {fn.__name__}: ") and words in message
    assert "\n" not in message


INTERPRET = """
import linecache, sys
import numpy as np, torch, triton, triton.language as tl
from haian.conformance.compare import judge
from haian.hal.dtype import BY_NAME
from haian.kernels.ops import OPS, draw
from haian.kernels.ops.formula import read
from haian.kernels.triton.pointwise import device_function

def kernel(body, compute):
    names = [f"p{i}" for i in range(len(body.tensors))] + [f"a{i}" for i in range(len(body.attrs))]
    loads = [f"    v{i} = tl.load(p{i} + at, mask=at < n){' != 0' if t in body.booleans else f'.to(tl.{compute})'}"
             for i, t in enumerate(body.tensors)]
    values = ", ".join([f"v{i}" for i in range(len(body.tensors))] + names[len(body.tensors):])
    lines = [f"def run({', '.join(names)}, y, n, F: tl.constexpr, BLOCK: tl.constexpr):",
             "    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)", *loads, f"    tl.store(y + at, F({values}), mask=at < n)"]
    file = f"<interpreted {body.name} {compute}>"
    linecache.cache[file] = (1, None, [line + chr(10) for line in lines], file)
    world = {"tl": tl}
    exec(compile(chr(10).join(lines), file, "exec"), world)
    return triton.jit(world["run"])

rng, tried = np.random.default_rng(7), 0
for name in sys.argv[1].split(","):
    op = OPS[name]
    for case in ("float32", "float64", "int32"):
        d = BY_NAME[case]
        for s in op.samples:
            if d not in op.dtypes or not s.name.startswith(("lanes", "domain")):
                continue
            x, attrs = [a.reshape(-1) for a in draw.inputs(s, d, rng)], op.attributes(s.attrs)
            body = read(op.formula).body(**attrs)
            y = torch.empty(x[0].shape, dtype=torch.bool if body.boolean else getattr(torch, case))
            numbers = [attrs[a] if d.is_floating else int(attrs[a]) for a, _ in body.attrs]
            kernel(body, case)[(triton.cdiv(len(x[0]), 256),)](*(torch.from_numpy(v.copy()) for v in x), *numbers, y, len(x[0]),
                                                               F=device_function(body), BLOCK=256)
            verdict = judge(op, x, attrs, y.numpy())
            assert verdict.ok, (name, case, s.name, verdict.message)
            tried += 1
print(tried)
"""


def test_triton_reading_agrees_with_the_references():
    """Every operator in Triton's interpreter (a process of its own: the interpreter patches Triton for good)."""
    pytest.importorskip("triton", reason="reads formulas as Triton functions")
    pytest.importorskip("torch", reason="the interpreter takes torch tensors")
    names = [n for n, o in OPS.items() if o.formula is not None and n != "cast"]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", INTERPRET, ",".join(names)], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 2 * len(names)
