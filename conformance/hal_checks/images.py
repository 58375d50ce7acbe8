"""Small kernels for the checks of modules, graphs, profiles and late failures, one text a kind of device.

    conform_axpy(*fp32 x, *fp32 y, fp32 a)    y[p] += a * x[p] for program p along x, one thread a program
    conform_leave(*fp32 x)                    stores far outside x: the device must report it

Triton IR and PTX are written by hand and C is compiled here, so no check needs Triton.  A driver of another kind of image
brings its own: ``Capabilities.extra["conformance_image"] = (bytes, format, kernel name)``, the kernel with the arguments and
the meaning of conform_axpy; a fourth entry names one with those of conform_leave.
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
from .check import NotOffered

__all__ = ["Image", "compiled", "image_of"]


@dataclass(frozen=True)
class Image:
    """name: of the kernel like conform_axpy; leave: of the one like conform_leave, "" where there is none."""

    data: bytes
    format: str
    name: str
    leave: str


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
}
"""

_PTX = """.version 6.0
.target sm_50
.address_size 64
.visible .entry conform_axpy(.param .u64 x, .param .u64 y, .param .f32 a)
{
  .reg .f32 %f<5>;
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
  fma.rn.f32 %f4, %f2, %f1, %f3;
  st.global.f32 [%d5], %f4;
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
"""

_C = """#include <stdint.h>
const char conform_axpy_args[] = "*fp32, *fp32, fp32";
void conform_axpy(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  const float *x = *(const float *const *)args[0];
  float *y = *(float *const *)args[1];
  (void)grid;
  y[program[0]] += *(const float *)args[2] * x[program[0]];
}
"""


def image_of(caps: Capabilities, modules: bool) -> Image:
    """The image for a device.  NotOffered, with the reason, where there is none."""
    own = caps.extra.get("conformance_image")
    if not modules:
        raise NotOffered("the driver has no modules")
    if isinstance(own, (tuple, list)) and len(own) in (3, 4):
        return Image(bytes(own[0]), str(own[1]), str(own[2]), str(own[3]) if len(own) == 4 else "")
    if caps.image_format == "ttir":
        return Image(_TTIR.encode(), "ttir", "conform_axpy", "conform_leave")
    if caps.triton_target is not None and caps.triton_target[0] == "cuda":
        return Image(_PTX.encode(), "ptx", "conform_axpy", "conform_leave")
    if caps.image_format == "so":
        return Image(compiled(_C), "so", "conform_axpy", "")  # a stray store on the host would end this process
    raise NotOffered(f"no kernel for the image format {caps.image_format!r}; give one in Capabilities.extra['conformance_image']")


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
