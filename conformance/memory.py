"""Where inputs lie and which hostile values they carry: layouts with guard bytes, special values, the integers of the probe.

Ordinary values come from the records' own draws (kernels/ops/draw.py).  Everything is a function of a generator that the
caller seeds from (case id, seed).  Not here: which of these are tried together (cases.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..hal.dtype import DType
from ..hal.dtype import dtype as to_dtype

__all__ = ["GUARD", "LAYOUTS", "Placed", "fits", "generator", "integers", "mixed", "place", "specials", "sprinkle", "unlike"]

GUARD = 64  # elements before and after every buffer; a vector store of 64 bytes past the end lands inside
FILL = 0xA5  # byte of outputs before the call
LAYOUTS = ("transposed", "sliced", "stride0", "negative", "offset")
_MIXED = ("contiguous", "sliced", "transposed", "negative", "stride0")  # neighbours differ, of vectors too


def generator(case_id: str, seed: int) -> np.random.Generator:
    """The random stream of one case: the same on every machine."""
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(f"{seed}/{case_id}".encode(), digest_size=8).digest(), "little")
    )


# ---- values -----------------------------------------------------------------------------------------------------------
def _limits(dt: DType) -> dict[str, float]:
    info = ml_dtypes.finfo(dt.numpy)
    return {"max": float(info.max), "tiny": float(info.smallest_normal), "sub": float(info.smallest_subnormal)}


def specials(dt: DType, kinds: str = "all") -> np.ndarray:
    """Hostile values of a dtype.

    kinds: all; moderate (without the largest numbers: two of them meet an infinity in composite formulas, where right
    implementations differ); infinite; nan.  Integers: their limits and neighbours.

    all and nan have two more NaNs: every bit set, and the sign with the lowest bit.  Rounded as numbers are, their bits carry
    over into 0 and -infinity.
    """
    if not dt.is_floating:
        info = np.iinfo(dt.numpy)
        return np.unique(
            np.array(
                [info.min, info.min + 1, info.max - 1, info.max, 0, 1, info.max // 2 + 1, -1 if info.min else 2],
                dt.numpy,
            )
        )
    limits = _limits(dt)
    values = {
        "all": (
            np.nan,
            np.inf,
            -np.inf,
            0.0,
            -0.0,
            limits["sub"],
            -3 * limits["sub"],
            limits["tiny"],
            limits["max"],
            -limits["max"],
            1.0,
            -1.0,
        ),
        "moderate": (np.nan, np.inf, -np.inf, 0.0, -0.0, limits["sub"], limits["tiny"], 1.0, -1.0),
        "infinite": (np.nan, np.inf, -np.inf, -0.0, limits["sub"]),
        "nan": (np.nan,),
    }[kinds]
    found = np.array(values).astype(dt.numpy)
    if kinds not in ("all", "nan"):
        return found
    bits, quiet = np.dtype(f"u{dt.itemsize}"), np.array(np.nan).astype(dt.numpy)
    least = quiet.view(bits) | bits.type(1) | bits.type(1 << 8 * dt.itemsize - 1)
    return np.concatenate([found, np.array([~bits.type(0) >> 1, least], bits).view(dt.numpy)])


def sprinkle(arrays: list[np.ndarray], rng, kinds: str = "all") -> list[np.ndarray]:
    """Copies with special values at random places, the same places in all of one shape.

    Three rounds where there is room: first the same value everywhere (NaN against NaN), then two of random pairs.  At
    least a third of the elements stays as it was; a single element becomes NaN (or a limit).
    """
    places: dict[tuple[int, ...], np.ndarray] = {}
    out = []
    for x in arrays:
        x = np.array(x, order="C")
        flat, values = x.reshape(-1), specials(to_dtype(x.dtype), kinds)
        at = places.setdefault(x.shape, rng.permutation(flat.size))
        room = max(flat.size * 2 // 3, min(flat.size, 1))
        rounds = (
            values if kinds == "nan" else np.concatenate([values, rng.permutation(values), rng.permutation(values)])
        )
        flat[at[:room][: len(rounds)]] = rounds[:room]
        out.append(x)
    return out


def integers(shape: tuple[int, ...], dt: DType, n: int, rng, axis: int | None = None, turn: int = 0) -> np.ndarray:
    """Integer values for the exact probe: every partial sum of n terms stays exact in the accumulator, in any order.

    Long sums are thinned out rather than drawn from fewer bits: float32 values keep 13 significant bits, so that inputs
    rounded to float16 or tf32 (11) show.  float16 results stay finite.

    Args:
        axis: for a factor of a product, the axis summed over: entries at every second place (``turn`` 0 or 1 says which)
            carry the bits and the others are -1 or 1, so that rounding either factor shows.
    """
    top, most = {"float64": (2**30, 2000), "float32": (8191, 1000), "float16": (2047, 180), "bfloat16": (255, 1000)}[
        dt.name
    ]
    big = rng.integers(1, top + 1, shape) * rng.choice((-1, 1), shape)
    keep = rng.random(shape) < most / max(n, 1)
    if axis is None:
        along = max(range(len(shape)), key=lambda a: shape[a]) if shape else None
        if along is not None and shape[along]:
            ends = np.isin(np.arange(shape[along]), (0, shape[along] - 1))
            keep |= ends.reshape([-1 if a == along else 1 for a in range(len(shape))])
        return np.where(keep, big, 0).astype(dt.numpy)
    place_ = np.arange(shape[axis]).reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    small = rng.choice((-1, 1), shape) * (keep | (place_ == 0) | (place_ == shape[axis] - 1))
    return np.where(place_ % 2 == turn, big, small).astype(dt.numpy)


def unlike(expected: np.ndarray, dt: np.dtype) -> np.ndarray:
    """What an output holds before the call: no element would pass for the expected one.

    NaN where a number is expected (bytes 0xA5 are close to 0 in float32), a number where NaN is; integers differ.
    bools hold 0xA5, which compare.py refuses in a result.
    """
    start = np.full((*expected.shape, dt.itemsize), FILL, np.uint8).view(dt).reshape(expected.shape)
    if to_dtype(dt).is_floating:
        return np.where(np.isnan(expected.astype(np.float64)), start, dt.type(np.nan))
    if dt.kind == "b":
        return start
    with np.errstate(all="ignore"):
        return np.where(expected.astype(dt) == start, ~start, start)


# ---- memory -----------------------------------------------------------------------------------------------------------
def mixed(case_id: str, position: int) -> str:
    """The layout of one of several tensors in a case of kind mixed."""
    return _MIXED[(int(hashlib.blake2b(case_id.encode(), digest_size=2).hexdigest(), 16) + position) % len(_MIXED)]


@dataclass
class Placed:
    """One tensor in memory: a flat buffer with guards, and the view the operator sees.

    base: (buffer elements,); offset and strides in elements; fresh: bytes of base before the call.
    """

    base: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    fresh: bytes = b""

    @property
    def view(self) -> np.ndarray:
        item = self.base.itemsize  # not as_strided: it asks NumPy for the type "<f1" of float8_e5m2
        raw: Any = self.base.view(np.uint8)  # nor does the buffer protocol know bfloat16
        return np.ndarray(self.shape, self.base.dtype, raw, self.offset * item, tuple(s * item for s in self.strides))

    def freeze(self) -> Placed:
        self.fresh = self.base.tobytes()
        return self

    def untouched(self) -> bool:
        """Whether no byte of the buffer changed since freeze."""
        return self.base.tobytes() == self.fresh

    def guards_intact(self) -> bool:
        """Whether every byte outside the view is what it was at freeze."""
        now = np.frombuffer(self.base.tobytes(), np.uint8).reshape(self.base.size, -1)
        was = np.frombuffer(self.fresh, np.uint8).reshape(self.base.size, -1)
        outside = np.ones(self.base.size, bool)
        index = np.full(self.shape, self.offset)
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides)):
            index = index + (np.arange(size) * stride).reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        outside[index.reshape(-1)] = False
        return bool((now[outside] == was[outside]).all())


def _row_major(shape) -> list[int]:
    out, step = [], 1
    for s in reversed(shape):
        out.append(step)
        step *= max(s, 1)
    return out[::-1]


def fits(shape: tuple[int, ...], layout: str) -> bool:
    """Whether ``layout`` differs from row-major for this shape."""
    long = sum(s > 1 for s in shape)
    if layout == "transposed":
        return long >= 2
    return 0 not in shape and len(shape) > 0 and (long >= 1)


def place(x: np.ndarray, layout: str = "contiguous", fill: bool = False) -> Placed:
    """Put ``x`` in memory under a layout.

    contiguous; transposed (axes reversed in memory); sliced (every second element of each axis, with NaN or 113 in the
    gaps); stride0 (the first entry along the first axis that is longer than 1, repeated: this changes the values);
    negative (last axis backwards, and the first); offset (one element past a vector boundary).

    Args:
        fill: an output: the whole buffer is FILL bytes instead of values.
    """
    shape = x.shape
    if not fits(shape, layout):
        layout = "contiguous"
    strides, extra = _row_major(shape), 0
    if layout == "contiguous" and not fill and 0 not in shape and not x.flags.c_contiguous:
        strides = [s // x.itemsize for s in x.strides]  # the record drew it transposed
    elif layout == "transposed":
        strides = _row_major(shape[::-1])[::-1]
    elif layout == "sliced":
        strides = [2 * s for s in _row_major(tuple(2 * d for d in shape))]
    elif layout == "offset":
        extra = 1
    elif layout == "stride0":
        axis = next(i for i, s in enumerate(shape) if s > 1)
        small = tuple(1 if i == axis else s for i, s in enumerate(shape))
        strides = [0 if i == axis else s for i, s in enumerate(_row_major(small))]
        x = np.broadcast_to(np.take(x, [0], axis), shape)
    elif layout == "negative":
        strides = [-s if i in (0, len(shape) - 1) else s for i, s in enumerate(strides)]
    low = sum(min(0, (d - 1) * s) for d, s in zip(shape, strides) if d)
    high = sum(max(0, (d - 1) * s) for d, s in zip(shape, strides) if d)
    used = 0 if 0 in shape else high - low + 1
    lead = GUARD + extra
    base = _aligned(lead + used + GUARD, x.dtype)
    placed = Placed(base, shape, tuple(strides), lead - low)
    if fill:
        base.view(np.uint8)[...] = FILL
    else:
        base[...] = True if x.dtype.kind == "b" else np.nan if to_dtype(x.dtype).is_floating else 113
        placed.view[...] = x
    return placed.freeze()


def _aligned(size: int, dt: np.dtype) -> np.ndarray:
    """A flat array whose element 0 lies on 64 bytes (GUARD elements later too, for every itemsize)."""
    raw = np.empty(size * dt.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dt.itemsize].view(dt)
