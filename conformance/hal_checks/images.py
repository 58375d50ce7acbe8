"""Small kernels for the checks of modules, graphs, profiles and late failures, one text a kind of device.

    conform_axpy(*fp32 x, *fp32 y, fp32 a)    y[p] += a * x[p] for program p along x, one thread a program
    conform_leave(*fp32 x)                    stores far outside x: the device must report it
    conform_grid(*i32 out)                    program (x, y, z) of a grid (gx, gy, gz) adds x, y, z, gx, gy, gz to the six
                                              numbers at 6 * ((z * gy + y) * gx + x), once, however many threads it has
    conform_args(i32 a, *i32 x, fp32 b, i32 c, *fp32 y)      x[0] = a, x[1] = c, y[0] = b
    conform_wide(i64 a, *i64 x, fp64 b, *fp64 y)             x[0] = a, y[0] = b

Triton IR and PTX are written by hand and C is compiled here, so no check needs Triton.  A driver of another kind of image
brings its own: ``Capabilities.extra["conformance_image"] = (bytes, format, kernel name)``, the kernel with the arguments and
the meaning of conform_axpy; further entries name those of conform_leave, conform_grid, conform_args and conform_wide, ""
for one that is not there.  What they would check is not checked then, and stands in the report (claims.py).
"""
from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...hal.driver import Capabilities
from ...hal.dtype import BY_NAME
from .check import NotOffered

__all__ = ["Image", "compiled", "image_of", "typed"]


@dataclass(frozen=True)
class Image:
    """name: of the kernel like conform_axpy; the others: of those like conform_leave and so on, "" where there is none.

    twin: another image with the same names, as long as this one, whose conform_axpy subtracts; b"" where there is none.
    """

    data: bytes
    format: str
    name: str
    leave: str = ""
    grid: str = ""
    args: str = ""
    wide: str = ""
    twin: bytes = b""


_TTIR = """module {
  tt.func public @conform_axpy(%x: !tt.ptr<f32>, %y: !tt.ptr<f32>, %a: f32) {
    %p = tt.get_program_id x : i32
    %px = tt.addptr %x, %p : !tt.ptr<f32>, i32
    %py = tt.addptr %y, %p : !tt.ptr<f32>, i32
    %vx = tt.load %px : !tt.ptr<f32>
    %vy = tt.load %py : !tt.ptr<f32>
    %m = arith.mulf %vx, %a : f32
    %s = arith.addf %vy, %m : f32
    tt.store %py, %s : !tt.ptr<f32>
    tt.return
  }
  tt.func public @conform_leave(%x: !tt.ptr<f32>) {
    %far = arith.constant 268435456 : i32
    %zero = arith.constant 0.000000e+00 : f32
    %px = tt.addptr %x, %far : !tt.ptr<f32>, i32
    tt.store %px, %zero : !tt.ptr<f32>
    tt.return
  }
  tt.func public @conform_grid(%out: !tt.ptr<i32>) {
    %x = tt.get_program_id x : i32
    %y = tt.get_program_id y : i32
    %z = tt.get_program_id z : i32
    %gx = tt.get_num_programs x : i32
    %gy = tt.get_num_programs y : i32
    %gz = tt.get_num_programs z : i32
    %one = arith.constant 1 : i32
    %six = arith.constant 6 : i32
    %plane = arith.muli %z, %gy : i32
    %row = arith.addi %plane, %y : i32
    %before = arith.muli %row, %gx : i32
    %linear = arith.addi %before, %x : i32
    %at = arith.muli %linear, %six : i32
    %p0 = tt.addptr %out, %at : !tt.ptr<i32>, i32
GRID
    tt.return
  }
  tt.func public @conform_args(%a: i32, %x: !tt.ptr<i32>, %b: f32, %c: i32, %y: !tt.ptr<f32>) {
    %one = arith.constant 1 : i32
    %x1 = tt.addptr %x, %one : !tt.ptr<i32>, i32
    tt.store %x, %a : !tt.ptr<i32>
    tt.store %x1, %c : !tt.ptr<i32>
    tt.store %y, %b : !tt.ptr<f32>
    tt.return
  }
  tt.func public @conform_wide(%a: i64, %x: !tt.ptr<i64>, %b: f64, %y: !tt.ptr<f64>) {
    tt.store %x, %a : !tt.ptr<i64>
    tt.store %y, %b : !tt.ptr<f64>
    tt.return
  }
}
""".replace("GRID", "\n".join(
    (f"    %p{k} = tt.addptr %p{k - 1}, %one : !tt.ptr<i32>, i32\n" if k else "") + f"""    %v{k} = tt.load %p{k} : !tt.ptr<i32>
    %s{k} = arith.addi %v{k}, %{name} : i32
    tt.store %p{k}, %s{k} : !tt.ptr<i32>""" for k, name in enumerate(("x", "y", "z", "gx", "gy", "gz"))))

_PTX = """.version 6.0
.target sm_50
.address_size 64
.visible .entry conform_axpy(.param .u64 x, .param .u64 y, .param .f32 a)
{
  .reg .f32 %f<6>;
  .reg .b32 %r<2>;
  .reg .b64 %d<6>;
  ld.param.u64 %d1, [x];
  ld.param.u64 %d2, [y];
  ld.param.f32 %f1, [a];
  mov.u32 %r1, %ctaid.x;
  mul.wide.u32 %d3, %r1, 4;
  add.s64 %d4, %d1, %d3;
  add.s64 %d5, %d2, %d3;
  ld.global.f32 %f2, [%d4];
  ld.global.f32 %f3, [%d5];
  mul.rn.f32 %f4, %f2, %f1;
  add.rn.f32 %f5, %f3, %f4;
  st.global.f32 [%d5], %f5;
  ret;
}
.visible .entry conform_leave(.param .u64 x)
{
  .reg .f32 %f<2>;
  .reg .b64 %d<2>;
  mov.u64 %d1, 16;
  mov.f32 %f1, 0f00000000;
  st.global.f32 [%d1], %f1;
  ret;
}
.visible .entry conform_grid(.param .u64 out)
{
  .reg .pred %p<2>;
  .reg .b32 %r<24>;
  .reg .b64 %d<4>;
  mov.u32 %r1, %tid.x;
  setp.ne.u32 %p1, %r1, 0;
  @%p1 bra DONE;
  ld.param.u64 %d1, [out];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ctaid.y;
  mov.u32 %r4, %ctaid.z;
  mov.u32 %r5, %nctaid.x;
  mov.u32 %r6, %nctaid.y;
  mov.u32 %r7, %nctaid.z;
  mad.lo.u32 %r8, %r4, %r6, %r3;
  mad.lo.u32 %r9, %r8, %r5, %r2;
  mul.wide.u32 %d2, %r9, 24;
  add.s64 %d3, %d1, %d2;
GRID
DONE:
  ret;
}
.visible .entry conform_args(.param .u32 a, .param .u64 x, .param .f32 b, .param .u32 c, .param .u64 y)
{
  .reg .f32 %f<2>;
  .reg .b32 %r<3>;
  .reg .b64 %d<3>;
  ld.param.u32 %r1, [a];
  ld.param.u64 %d1, [x];
  ld.param.f32 %f1, [b];
  ld.param.u32 %r2, [c];
  ld.param.u64 %d2, [y];
  st.global.u32 [%d1], %r1;
  st.global.u32 [%d1+4], %r2;
  st.global.f32 [%d2], %f1;
  ret;
}
.visible .entry conform_wide(.param .u64 a, .param .u64 x, .param .f64 b, .param .u64 y)
{
  .reg .f64 %f<2>;
  .reg .b64 %d<4>;
  ld.param.u64 %d1, [a];
  ld.param.u64 %d2, [x];
  ld.param.f64 %f1, [b];
  ld.param.u64 %d3, [y];
  st.global.u64 [%d2], %d1;
  st.global.f64 [%d3], %f1;
  ret;
}
""".replace("GRID", "\n".join(f"""  ld.global.u32 %r{10 + k}, [%d3+{4 * k}];
  add.u32 %r{16 + k}, %r{10 + k}, %r{2 + k};
  st.global.u32 [%d3+{4 * k}], %r{16 + k};""" for k in range(6)))

_C = """#include <stdint.h>
const char conform_axpy_args[] = "*fp32, *fp32, fp32";
void conform_axpy(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  const float *x = *(const float *const *)args[0];
  float *y = *(float *const *)args[1];
  (void)grid;
  y[program[0]] += *(const float *)args[2] * x[program[0]];
}
const char conform_grid_args[] = "*i32";
void conform_grid(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  int32_t *out = *(int32_t *const *)args[0] + 6 * ((program[2] * grid[1] + program[1]) * grid[0] + program[0]);
  for (int k = 0; k < 3; k++) out[k] += (int32_t)program[k], out[3 + k] += (int32_t)grid[k];
}
const char conform_args_args[] = "i32, *i32, fp32, i32, *fp32";
void conform_args(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  int32_t *x = *(int32_t *const *)args[1];
  (void)grid, (void)program;
  x[0] = *(const int32_t *)args[0], x[1] = *(const int32_t *)args[3], **(float *const *)args[4] = *(const float *)args[2];
}
const char conform_wide_args[] = "i64, *i64, fp64, *fp64";
void conform_wide(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  (void)grid, (void)program;
  **(int64_t *const *)args[1] = *(const int64_t *)args[0], **(double *const *)args[3] = *(const double *)args[2];
}
"""
_SUBTRACTS = (("arith.addf %vy", "arith.subf %vy"), ("add.rn.f32 %f5", "sub.rn.f32 %f5"), ("y[program[0]] +=", "y[program[0]] -="))
_GRID, _ARGS, _WIDE = "conform_grid", "conform_args", "conform_wide"


def image_of(caps: Capabilities, modules: bool) -> Image:
    """The image for a device.  NotOffered, with the reason, where there is none."""
    own = caps.extra.get("conformance_image")
    if not modules:
        raise NotOffered("the driver has no modules")
    if isinstance(own, (tuple, list)) and 3 <= len(own) <= 7:
        return Image(bytes(own[0]), *map(str, own[1:]))  # type: ignore[arg-type]
    if caps.image_format == "ttir":
        return Image(_TTIR.encode(), "ttir", "conform_axpy", "conform_leave", _GRID, _ARGS, _WIDE, _twin(_TTIR).encode())
    if caps.triton_target is not None and caps.triton_target[0] == "cuda":
        return Image(_PTX.encode(), "ptx", "conform_axpy", "conform_leave", _GRID, _ARGS, _WIDE, _twin(_PTX).encode())
    if caps.image_format == "so":  # without conform_leave: a stray store on the host would end this process
        return Image(compiled(_C), "so", "conform_axpy", "", _GRID, _ARGS, _WIDE, compiled(_twin(_C)))
    raise NotOffered(f"no kernel for the image format {caps.image_format!r}; give one in Capabilities.extra['conformance_image']")


_MLIR = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "float8_e4m3fn": "f8E4M3FN", "float8_e5m2": "f8E5M2"}


def typed(dtype: str, math: bool) -> bytes:
    """Triton IR of conform_typed(*T x, *T y): y[0] = x[0], with ``math`` x[0] + x[0]; b"" where the dtype is not one of its numbers."""
    kind = BY_NAME[dtype]
    name = _MLIR.get(dtype, f"i{8 * kind.itemsize}" if kind.kind in "iu" else "")
    add = f"    %s = arith.add{'f' if kind.kind == 'f' else 'i'} %v, %v : {name}\n" if math else ""
    text = f"""module {{
  tt.func public @conform_typed(%x: !tt.ptr<{name}>, %y: !tt.ptr<{name}>) {{
    %v = tt.load %x : !tt.ptr<{name}>
{add}    tt.store %y, {"%s" if math else "%v"} : !tt.ptr<{name}>
    tt.return
  }}
}}
"""
    return text.encode() if name else b""


def _twin(text: str) -> str:
    for old, new in _SUBTRACTS:
        text = text.replace(old, new)
    return text


def compiler() -> str:
    """The C compiler: CC, cc, gcc or clang; "" where there is none."""
    return next((c for c in (os.environ.get("CC", ""), "cc", "gcc", "clang") if c and shutil.which(c.split()[0])), "")


@functools.lru_cache(maxsize=64)
def compiled(source: str, include: str = "", optimize: str = "-O1") -> bytes:
    """The bytes of a shared object made from C text.  NotOffered without a C compiler; RuntimeError where it refuses."""
    cc = compiler()
    if not cc:
        raise NotOffered("no C compiler (CC, cc, gcc, clang) to make a shared object")
    with tempfile.TemporaryDirectory(prefix="haian-") as folder:
        code, out = Path(folder, "image.c"), Path(folder, "image.so")
        code.write_text(source)
        flags = [f"-I{include}"] if include else []
        done = subprocess.run([*cc.split(), "-std=c11", optimize, "-fPIC", "-shared", *flags, str(code), "-o", str(out)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{cc} refused a kernel of the suite: {done.stderr.strip().splitlines()[:1]}")
        return out.read_bytes()
