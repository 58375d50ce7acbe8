"""selective_scan (Mamba) and gated_delta_rule (Qwen3-Next): what they are.

How they are computed: kernels/cpu/recurrent.c, kernels/triton/recurrent.py.  Not here: their chunked forms, which compute the same.
"""
from __future__ import annotations

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .infer import accumulator, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


# ---- selective_scan --------------------------------------------------------------------------------------------------------
def _need_acc(name: str, what: str, spec: Spec, u: Spec) -> None:
    if spec.dtype is not accumulator(u.dtype):
        raise DTypeError(f"{name}: {what} has dtype {spec.dtype} beside {u.dtype} inputs; needs {accumulator(u.dtype)}; cast it first")


def _need_shape(name: str, what: str, spec: Spec, *shapes: tuple[int, ...]) -> None:
    if spec.shape not in shapes:
        raise ShapeError(f"{name}: {what} is {spec.shape}; needs {' or '.join(map(str, shapes))}")


def _infer_selective(u: Spec, delta: Spec, A: Spec, B: Spec, C: Spec, D: Spec | None, z: Spec | None, delta_bias: Spec | None, *,
                     delta_softplus: bool) -> tuple[Spec, Spec]:
    name = "selective_scan"
    need_dtype(name, "u", u, FLOATS)
    need_rank(name, "u", u, 3)
    same_dtype(name, u, delta, z)
    batch, dim, length = u.shape
    _need_shape(name, "delta", delta, u.shape)
    need_rank(name, "A", A, 2)
    _need_shape(name, "A", A, (dim, A.shape[1]))
    state = A.shape[1]
    for what, s in (("B", B), ("C", C)):
        need_rank(name, what, s, 2, 3, 4)
        if s.ndim == 2:
            _need_shape(name, what, s, (dim, state))
            _need_acc(name, what, s, u)
            continue
        same_dtype(name, u, s)
        groups = s.shape[1] if s.ndim == 4 else 1
        if groups < 1 or dim % groups:
            raise ShapeError(f"{name}: {what} has {groups} groups for {dim} channels; needs a divisor of them")
        _need_shape(name, what, s, (batch, state, length) if s.ndim == 3 else (batch, groups, state, length))
    for what, v in (("D", D), ("delta_bias", delta_bias)):
        if v is not None:
            _need_shape(name, what, v, (dim,))
            _need_acc(name, what, v, u)
    if z is not None:
        _need_shape(name, "z", z, u.shape)
    _need_acc(name, "A", A, u)
    return u, Spec((batch, dim, state), accumulator(u.dtype))


def _over_time(m: np.ndarray, dim: int, length: int) -> np.ndarray:
    """B or C as (batch or 1, dim, state, length or 1)."""
    if m.ndim == 2:
        return m[None, :, :, None]
    m = m[:, None] if m.ndim == 3 else m
    return np.repeat(m, dim // m.shape[1], axis=1)


def _selective_scan(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus):
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    if delta_softplus:
        dt = np.logaddexp(dt, np.zeros((), dt.dtype))
    batch, dim, length = u.shape
    b, c = (_over_time(m, dim, length) for m in (B, C))
    h = np.zeros((batch, dim, A.shape[1]), u.dtype)
    y = np.zeros_like(u)
    for t in range(length):
        at = [m[..., t if m.shape[-1] > 1 else 0] for m in (b, c)]
        h = np.exp(dt[:, :, t, None] * A) * h + (dt[:, :, t] * u[:, :, t])[..., None] * at[0]
        y[:, :, t] = (h * at[1]).sum(-1)
    if D is not None:
        y = y + u * D[:, None]
    if z is not None:
        y = y * (z / (1.0 + np.exp(-z)))
    return y, h


def _selective_cost(item: int, u: Spec, delta: Spec, A: Spec, *others, **_) -> Cost:
    return Cost(flops=u.size * A.shape[1] * 7, bytes=sum(s.size * s.dtype.itemsize for s in (u, u, delta, A, *others) if s is not None))


def _decays(dim: int, state: int) -> In:
    """-1, -2, ..., -state, as Mamba starts with, a little different in every channel."""
    return In((dim, state), dtype="acc", values=tuple(-(n + 1.0) * (1 + d % 5 / 16) for d in range(dim) for n in range(state)))


def _scan_sample(name, batch, dim, length, state, groups=0, more=(), softplus=True, model="", level="core", bench=()):
    """groups: of B and C; 0: without that axis; -1: constant in time."""
    def projection():
        return In((dim, state), dtype="acc") if groups < 0 else In((batch, state, length) if groups == 0 else (batch, groups, state, length))

    shape = (batch, dim, length)
    return Sample(name, (In(shape), In(shape, "normal" if softplus else "unit"), _decays(dim, state), projection(), projection(),
                         In((dim,), dtype="acc") if "D" in more else None, In(shape) if "z" in more else None,
                         In((dim,), dtype="acc") if "bias" in more else None), {"delta_softplus": softplus}, model, level, bench)


_ALL = ("D", "z", "bias")
_SCANS = [_scan_sample("one", 1, 1, 1, 1), _scan_sample("prime", 2, 5, 13, 7, 0, _ALL), _scan_sample("plain", 1, 3, 33, 16, 0, (), False),
          _scan_sample("groups", 2, 6, 17, 4, 3, ("D",)), _scan_sample("constant", 1, 4, 19, 5, -1, ("z",), False),
          _scan_sample("past_block", 1, 3, 261, 16, 1, _ALL), _scan_sample("no_time", 2, 3, 0, 4), _scan_sample("no_channels", 2, 0, 3, 4),
          _scan_sample("mamba_130m", 1, 1536, 128, 16, 0, _ALL, True, "Mamba-130m block", "llm", ("full", "llm"))]
_U, _BC = In((2, 3, 5)), In((2, 4, 5))
_A = In((3, 4))


def _bad_scan(name, error, words, u=_U, delta=_U, a=_A, b=_BC, c=_BC, d=None, dtype="float32"):
    return Bad(name, (u, delta, a, b, c, d, None, None), error, words, {}, dtype)


op("selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
   "bool delta_softplus=false) -> (Tensor out, Tensor last_state)", family="recurrent", dtypes=FLOATS, infer=_infer_selective,
   reference=_selective_scan, budget=Conditioned(k=8, terms=lambda u, *_, **__: u.shape[2] + 1), cost=_selective_cost, samples=_SCANS,
   doc="Mamba's state space: h = exp(delta A) h + delta u B and out = sum(h C) + u D, times silu(z), along the last axis of u (batch, "
       "dim, length); delta gets delta_bias and then softplus first.  A (dim, state); B and C (batch, state, length), with groups (batch, "
       "groups, state, length), or constant (dim, state).  A, D, delta_bias, constant B and C, and last_state (batch, dim, state) are "
       "float32 for float16 and bfloat16.",
   bad=(_bad_scan("delta_shape", ShapeError, ("delta", "(2, 3, 6)"), delta=In((2, 3, 6))),
        _bad_scan("state", ShapeError, ("B is", "(2, 5, 5)"), b=In((2, 5, 5))),
        _bad_scan("groups", ShapeError, ("2 groups", "3 channels"), c=In((2, 2, 4, 5))),
        _bad_scan("dtypes", DTypeError, ("float32", "float64"), delta=In((2, 3, 5), dtype="float64")),
        _bad_scan("low_A", DTypeError, ("A has dtype bfloat16", "float32"), a=In((3, 4), dtype="bfloat16"))),
   names={"mamba": ("selective_scan_fn",)})


# ---- gated_delta_rule ------------------------------------------------------------------------------------------------------
def _infer_delta(q: Spec, k: Spec, v: Spec, g: Spec, beta: Spec, initial_state: Spec | None, *, scale: float | None,
                 use_qk_l2norm: bool) -> tuple[Spec, Spec]:
    name = "gated_delta_rule"
    need_dtype(name, "q", q, FLOATS)
    need_rank(name, "q", q, 4)
    need_rank(name, "v", v, 4)
    same_dtype(name, q, k, v, beta)
    batch, length, heads, width = q.shape
    _need_shape(name, "k", k, q.shape)
    _need_shape(name, "v", v, (batch, length, *v.shape[2:]))
    if heads < 1 or v.shape[2] % heads:
        raise ShapeError(f"{name}: v has {v.shape[2]} heads and q {heads}; needs a multiple of q's")
    for what, s in (("g", g), ("beta", beta)):
        _need_shape(name, what, s, v.shape[:3])
    _need_acc(name, "g", g, q)
    state = (batch, v.shape[2], width, v.shape[3])
    if initial_state is not None:
        _need_shape(name, "initial_state", initial_state, state)
        _need_acc(name, "initial_state", initial_state, q)
    if width < 1:
        raise ArgumentError(f"{name}: q is {q.shape}; needs at least one element a head")
    return Spec((batch, length, *v.shape[2:]), q.dtype), Spec(state, accumulator(q.dtype))


def _gated_delta(q, k, v, g, beta, initial_state, *, scale, use_qk_l2norm):
    if use_qk_l2norm:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    each = v.shape[2] // q.shape[2]
    q, k = (np.repeat(x, each, axis=2) for x in (q, k))
    batch, length, heads, width = q.shape
    s = np.zeros((batch, heads, width, v.shape[3]), v.dtype) if initial_state is None else np.array(initial_state)
    y = np.zeros(v.shape, v.dtype)
    for t in range(length):
        s = s * np.exp(g[:, t])[..., None, None]
        known = (s * k[:, t, :, :, None]).sum(-2)
        s = s + k[:, t, :, :, None] * ((v[:, t] - known) * beta[:, t][..., None])[..., None, :]
        y[:, t] = (s * q[:, t, :, :, None]).sum(-2)
    return y, s


def _delta_cost(item: int, q: Spec, k: Spec, v: Spec, *others, **_) -> Cost:
    steps = v.shape[0] * v.shape[1] * v.shape[2]
    return Cost(flops=7 * steps * q.shape[3] * v.shape[3], bytes=sum(s.size * s.dtype.itemsize for s in (q, k, v, v, *others) if s is not None))


def _delta_sample(name, batch, length, heads, width, v_heads, v_width, state=False, l2=True, scale=None, model="", level="core", bench=()):
    """g is at most 0 and beta in (0, 1), as the model makes them."""
    gates = (batch, length, v_heads)
    size = batch * length * v_heads
    return Sample(name, (In((batch, length, heads, width)), In((batch, length, heads, width)), In((batch, length, v_heads, v_width)),
                         In(gates, dtype="acc", values=tuple(-((i * 7) % 11) / 16 for i in range(size))), In(gates, "unit"),
                         In((batch, v_heads, width, v_width), dtype="acc") if state else None),
                  {"use_qk_l2norm": l2, "scale": scale}, model, level, bench)


_DELTAS = [_delta_sample("one", 1, 1, 1, 1, 1, 1), _delta_sample("prime", 2, 7, 3, 5, 3, 11, True), _delta_sample("grouped", 1, 9, 2, 16, 6, 8),
           _delta_sample("scaled", 1, 5, 1, 7, 2, 3, True, True, 0.25), _delta_sample("past_tile", 1, 3, 1, 33, 1, 67, True),
           _delta_sample("no_time", 1, 0, 2, 3, 2, 4, True), _delta_sample("single", 3, 1, 2, 64, 4, 65, True),
           _delta_sample("qwen3_next", 1, 16, 16, 128, 32, 128, True, True, None, "Qwen3-Next linear attention, 16 tokens", "llm", ("full", "llm")),
           _delta_sample("qwen3_next_decode", 1, 1, 16, 128, 32, 128, True, True, None, "Qwen3-Next linear attention, one token", "llm", ("full", "llm"))]
_Q, _V, _G = In((1, 3, 2, 4)), In((1, 3, 2, 5)), In((1, 3, 2))


def _bad_delta(name, error, words, q=_Q, k=_Q, v=_V, g=_G, beta=_G, state=None):
    return Bad(name, (q, k, v, g, beta, state), error, words)


op("gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? initial_state, *, float? scale=None, "
   "bool use_qk_l2norm=false) -> (Tensor out, Tensor final_state)", family="recurrent", dtypes=FLOATS, infer=_infer_delta,
   reference=_gated_delta, cost=_delta_cost, samples=_DELTAS,
   budget=Conditioned(k=8, terms=lambda q, *_, **__: q.shape[3] + q.shape[1]),
   doc="Linear attention with decay and the delta rule, step by step: S = exp(g) S, then S += k (beta (v - S^T k))^T and out = S^T q "
       "scale, scale 1 / sqrt(width) unless given.  q, k (batch, time, heads, width); v, out (batch, time, value heads, value width), "
       "value heads a multiple of heads; g, beta (batch, time, value heads).  use_qk_l2norm: q and k are divided by sqrt(sum of "
       "squares + 1e-6) first.  g and the states (batch, value heads, width, value width) are float32 for float16 and bfloat16.",
   bad=(_bad_delta("k_shape", ShapeError, ("k is", "(1, 3, 2, 5)"), k=_V), _bad_delta("heads", ShapeError, ("3 heads", "2"), v=In((1, 3, 3, 5))),
        _bad_delta("g_shape", ShapeError, ("g is", "(1, 2, 2)"), g=In((1, 2, 2))),
        _bad_delta("dtypes", DTypeError, ("float32", "float64"), v=In((1, 3, 2, 5), dtype="float64")),
        _bad_delta("state", ShapeError, ("initial_state is", "(1, 2, 5, 4)"), state=In((1, 2, 5, 4)))),
   names={"fla": ("fused_recurrent_gated_delta_rule",)})
