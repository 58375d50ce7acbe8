"""Every operator's record against itself (schema, shapes, errors), against PyTorch on the CPU, and its gradient against
central differences of its own float64 reference.  Kernels are not run here; conformance does that.
"""
from __future__ import annotations

import inspect
import zlib

import numpy as np
import pytest
from haian.hal.dtype import BY_NAME, DType, dtype
from haian.hal.errors import HaianError, IndexOutOfBounds
from haian.kernels import ops
from haian.kernels.ops import OPS
from haian.kernels.ops import draw as draws
from haian.kernels.ops.draw import draw, inputs, resolve, specs
from haian.kernels.ops.random import PHILOX_GOLDEN, philox4x32, uniform, words
from haian.kernels.ops.record import In, Sample, Spec, parse_schema

LEVELS = ("core", "inference", "training", "llm", "full")
SUITES = {"quick", "full", "llm", "vision"}
MINE = ("reduce", "softmax", "norm", "matmul", "attention", "shape", "index", "random", "loss")
SERVERS = ("llm", "moe", "attention_serve")  # torch has no such operators: conformance/witness.py composes what it can
F32, F64 = BY_NAME["float32"], BY_NAME["float64"]


def attributes(op, sample, case):
    return draws.attributes(op, sample.attrs, case)


def as_reference(a):
    """float64 for floating arrays (bfloat16 included), others as they are."""
    if a is None or isinstance(a, np.ndarray) and a.dtype.kind in "biu":
        return a
    return tuple(map(as_reference, a)) if isinstance(a, tuple) else a.astype(np.float64)


def rng_of(*key):
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def tuple_of(x):
    return x if isinstance(x, tuple) else (x,)


def is_small(op, sample):
    flat = [i for s in sample.inputs if s is not None for i in tuple_of(s)]
    elements = sum(int(np.prod(i.shape)) for i in flat) + int(np.prod(sample.attrs.get("shape", ())))
    case = op.dtypes[0]
    cost = op.cost(case.itemsize, *specs(sample, case), **attributes(op, sample, case))
    return elements < 300_000 and cost.bytes < 4e6 and cost.flops < 3e8


def cases(families=None, without=()):
    return [pytest.param(op, id=op.name) for op in OPS.values()
            if (families is None or op.family in families) and op.name not in without]


# ---- the record itself --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", cases())
def test_record_is_complete(op):
    assert OPS[op.name] is op and parse_schema(op.schema)[0] == op.name
    assert inspect.getmodule(op.infer) is not None and hasattr(ops, op.family), f"no file kernels/ops/{op.family}.py"
    assert op.doc and op.doc[-1] in ".)" and op.dtypes and op.samples and (op.bad or not op.takes_out) and op.cost and op.names
    assert callable(op.reference) and op.budget.letter != "?" and op.rule in ("", "same", "broadcast", "reduce")
    assert len({s.name for s in op.samples}) == len(op.samples), "sample names are ids"
    assert len({b.name for b in op.bad}) == len(op.bad)
    known = {p.name for p in op.attrs}
    for s in (*op.samples, *op.bad):
        assert len(s.inputs) == len(op.tensors) and set(s.attrs) <= known, s.name
        for p, i in zip(op.tensors, s.inputs):
            assert (i is None) <= p.optional and isinstance(i, tuple) == (p.kind == "tensors"), (s.name, p.name)
        required = {p.name for p in op.attrs if p.default is inspect.Parameter.empty}
        assert required <= set(s.attrs), (s.name, required)
    for s in op.samples:
        assert s.level in LEVELS and set(s.bench) <= SUITES, s.name
    assert any(is_small(op, s) and s.level == "core" for s in op.samples)


def test_aten_names_belong_to_one_record():
    taken = {}
    for op in OPS.values():
        for name in op.names.get("aten", ()):
            assert taken.setdefault(name, op.name) == op.name, f"{name}: {taken[name]} and {op.name}"


def test_aten_names_exist_and_are_leaves():
    torch = pytest.importorskip("torch", reason="compares names with PyTorch's own table")
    for op in OPS.values():
        for name in op.names.get("aten", ()):
            base, _, overload = name.partition(".")
            found = getattr(getattr(torch.ops.aten, base), overload or "default")
            has = torch._C._dispatch_has_kernel_for_dispatch_key
            assert has(found.name(), "CPU") or not has(found.name(), "CompositeImplicitAutograd"), name


def check_against_infer(op, sample, case):
    attrs = attributes(op, sample, case)
    want = tuple_of(op.infer(*specs(sample, case), **attrs))
    got = op.reference(*as_reference(inputs(sample, case, rng_of(op.name, sample.name, case))), **attrs)
    assert isinstance(got, tuple) == (len(op.results) > 1 or op.lists)
    assert len(want) == len(tuple_of(got)) and (op.lists or len(want) == len(op.results))
    for spec, y in zip(want, tuple_of(got)):
        y = np.asarray(y)
        fits = y.ndim == spec.ndim and y.size <= spec.size if op.dynamic else y.shape == spec.shape
        assert isinstance(spec, Spec) and fits, (sample.name, case, y.shape, spec)
        kinds = "f" if spec.dtype.is_floating else "b" if spec.dtype.kind == "b" else "iu"
        assert y.dtype.kind in kinds, (sample.name, case, y.dtype, spec.dtype)
    cost = op.cost(case.itemsize, *specs(sample, case), **attrs)
    assert isinstance(cost.flops, int) and isinstance(cost.bytes, int) and cost.flops >= 0 and cost.bytes >= 0
    terms = getattr(op.budget, "terms", None)
    assert terms is None or terms(*specs(sample, case), **attrs) >= 0
    return want[0], want


@pytest.mark.parametrize("op", cases())
def test_infer_equals_reference(op):
    chosen = [d for d in op.dtypes if d.name in ("float32", "bfloat16", "int32", "uint8", "bool")] or op.dtypes[:1]
    for case in chosen:
        for sample in op.samples:
            if not is_small(op, sample):
                tuple_of(op.infer(*specs(sample, case), **attributes(op, sample, case)))
                continue
            first, _ = check_against_infer(op, sample, case)
            if op.rule == "same":
                s = specs(sample, case)[0]
                assert first.shape == s.shape and (op.family == "pointwise" or first.dtype is s.dtype)


@pytest.mark.parametrize("op", [c for c in cases((*MINE, *SERVERS)) if c.values[0].budget.letter == "R"])
def test_magnitude_bounds_result(op):
    """S of a reduction is at least |result|: a budget smaller than the result would refuse right answers."""
    for sample in op.samples:
        if not is_small(op, sample) or "nan" in sample.name:
            continue
        attrs = attributes(op, sample, F64)
        x = as_reference(inputs(sample, F64, rng_of(sample.name)))
        fn = op.budget.magnitude or (lambda *a, **k: op.reference(*(v if v is None else np.abs(v) for v in a), **k))
        for s, y in zip(tuple_of(fn(*x, **attrs)), tuple_of(op.reference(*x, **attrs))):
            if s is not None:
                with np.errstate(invalid="ignore"):
                    assert not (np.abs(y) > np.asarray(s) * (1 + 1e-12)).any(), sample.name


BAD = [pytest.param(op, bad, id=f"{op.name}-{bad.name}") for op in OPS.values() for bad in op.bad]


@pytest.mark.parametrize("op,bad", BAD)
def test_bad_input_is_refused(op, bad):
    case = dtype(bad.dtype)
    given = Sample(bad.name, bad.inputs, bad.attrs)
    attrs = attributes(op, given, case)
    with pytest.raises(HaianError) as caught:
        op.infer(*specs(given, case), **attrs)
        assert bad.error is IndexOutOfBounds, "only errors that depend on data may pass infer"
        op.reference(*as_reference(inputs(given, case, rng_of(bad.name))), **attrs)
    assert type(caught.value) is bad.error, caught.value
    message = str(caught.value)
    assert message.startswith(f"{op.name}: ") and "\n" not in message
    for word in bad.words:
        assert word in message, (word, message)


def test_draws_are_what_they_say():
    rng = np.random.default_rng(5)
    shape = (64, 64)
    assert draw(In(shape, "uniform"), F32, rng).dtype == np.float32
    assert (np.abs(draw(In(shape, "uniform"), F64, rng)) <= 1).all()
    assert (draw(In(shape, "positive"), F64, rng) >= 0.1).all()
    assert set(np.unique(draw(In(shape, "index", "int32", 7), F32, rng))) == set(range(7))
    assert np.allclose(draw(In(shape, "prob"), F64, rng).sum(-1), 1)
    assert np.allclose(np.exp(draw(In(shape, "logp"), F64, rng)).sum(-1), 1)
    assert len(np.unique(draw(In(shape, "distinct"), F64, rng))) == 4096
    assert set(np.unique(draw(In(shape, "float_mask"), F32, rng))) == {-np.inf, 0.0}
    wide = draw(In(shape, "wide"), F32, rng)
    assert np.isnan(wide).any() and np.isposinf(wide).any() and np.isneginf(wide).any()
    assert draw(In(shape, "wide"), BY_NAME["int8"], rng).min() == -128
    t = draw(In((3, 5), layout="transposed"), F32, rng)
    assert t.shape == (3, 5) and t.strides == (4, 12)
    assert resolve(In((), dtype="acc"), BY_NAME["bfloat16"]) is F32 and resolve(In((), dtype="acc"), F64) is F64
    assert draw(In((2, 2), values=(1, 2, 3, 4)), F32, rng).tolist() == [[1, 2], [3, 4]]


def test_measured_rows_can_be_benched():
    """Every row of the peers' table that belongs to these families has a sample that a bench suite times."""
    rows = (("softmax", (4096, 4096)), ("softmax", (128, 32000)), ("layer_norm", (4096, 4096)),
            ("rms_norm", (4096, 4096)),
            ("sum", (4096, 4096)), ("mean", (4096, 4096)), ("amax", (4096, 4096)), ("argmax", (4096, 4096)),
            ("sum", (16,)),
            ("embedding", (32000, 1024)), ("copy", (4096, 4096)), ("matmul", (512, 512)), ("matmul", (1024, 1024)),
            ("matmul", (128, 4096)), ("matmul", (1, 4096)), ("bmm", (32, 256, 128)),
            ("scaled_dot_product_attention", (1, 32, 1024, 128)), ("scaled_dot_product_attention", (1, 32, 1, 128)))
    for name, first in rows:
        assert any(s.bench and s.inputs[0].shape == first for s in OPS[name].samples), (name, first)
    for name in ("sum", "mean", "amax"):
        assert {s.attrs["dim"] for s in OPS[name].samples if s.inputs[0].shape == (4096, 4096)} == {-1, None, 0}
    quick = [(op.name, s.name) for op in OPS.values() if op.family in MINE and op.family != "softmax"
             for s in op.samples if "quick" in s.bench]
    assert 6 <= len(quick) <= 12, quick


# ---- Philox -------------------------------------------------------------------------------------------------------
def test_philox_known_answers():
    for counter, key, result in PHILOX_GOLDEN:
        assert tuple(int(w) for w in philox4x32(counter, key)) == result


def test_philox_stream():
    assert [int(w) for w in words(6, 0, 0)[:4]] == list(PHILOX_GOLDEN[0][2])
    seed, offset = 0x299F31D0A4093822, 0x0370734413198A2E
    whole = words(40, seed, offset)
    assert (words(7, seed, offset) == whole[:7]).all() and (words(40, seed, offset + 1) != whole).any()
    assert (words(8, -1, 0) == words(8, 2**64 - 1, 0)).all()
    w = whole[:2].tolist()
    assert uniform(1, seed, offset, F32)[0] == (w[0] >> 8) * 2.0**-24
    assert uniform(1, seed, offset, BY_NAME["float16"])[0] == (w[0] >> 21) * 2.0**-11
    assert uniform(1, seed, offset, BY_NAME["bfloat16"])[0] == (w[0] >> 24) * 2.0**-8
    assert uniform(1, seed, offset, F64)[0] == ((w[0] << 21) ^ (w[1] >> 11)) * 2.0**-53
    for name in ("float16", "bfloat16", "float32", "float64"):
        u = uniform(4099, 3, 1, BY_NAME[name])
        assert (u.astype(BY_NAME[name].numpy).astype(np.float64) == u).all() and 0 <= u.min() and u.max() < 1


def test_rand_is_uniform():
    stats = pytest.importorskip("scipy.stats", reason="Kolmogorov-Smirnov")
    for name in ("float32", "float64"):
        assert stats.kstest(uniform(200_003, 11, 5, BY_NAME[name]), "uniform").pvalue > 1e-6
    keep = OPS["native_dropout"].reference(np.ones(200_003), p=0.3, seed=1, offset=0)[1]
    assert abs(keep.mean() - 0.7) < 5 * np.sqrt(0.21 / keep.size)


# ---- against PyTorch ----------------------------------------------------------------------------------------------
def torch_calls(torch):
    """Operator -> how PyTorch spells it; samples that aten refuses or defines otherwise are named in DIFFERS."""
    F, aten = torch.nn.functional, torch.ops.aten
    number = {"none": 0, "mean": 1, "sum": 2}

    def reduction(fn):
        return lambda x, dim, keepdim, **k: fn(x, tuple(range(x.ndim)) if dim is None else dim, keepdim, **k)

    def prod(x, dim, keepdim, dtype):  # aten's takes one axis
        for d in sorted((k % max(x.ndim, 1) for k in range(x.ndim) if dim in (None, ()) or k in {
                j % x.ndim for j in ((dim,) if isinstance(dim, int) else dim)}), reverse=True):
            x = torch.prod(x, d, keepdim, dtype=dtype and getattr(torch, dtype.name))
        return x if x.is_floating_point() else x.to(torch.int64)

    def logical(fn):  # aten's any and all of uint8 give uint8
        return lambda x, dim, keepdim: fn(x != 0, tuple(range(x.ndim)) if dim is None or dim == () else dim, keepdim)

    def flash(q, k, v, mask, is_causal, scale):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal,
                                                                    attn_mask=float_mask(q, mask), scale=scale)
        return out, lse

    def float_mask(q, mask):
        if mask is None or mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -float("inf"))

    def flash_backward(dy, q, k, v, out, lse, mask, is_causal, scale):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(dy, q, k, v, out, lse, 0.0, is_causal,
                                                                         attn_mask=float_mask(q, mask), scale=scale)

    return {
        "sum": lambda x, dim, keepdim, dtype: torch.sum(x, dim, keepdim, dtype=dtype and getattr(torch, dtype.name)),
        "mean": lambda x, dim, keepdim, dtype: torch.mean(x, dim, keepdim, dtype=dtype and getattr(torch, dtype.name)),
        "amax": reduction(torch.amax), "amin": reduction(torch.amin), "argmax": torch.argmax, "argmin": torch.argmin,
        "var": lambda x, dim, correction, keepdim: torch.var(x, dim, correction=correction, keepdim=keepdim),
        "any": logical(torch.any), "all": logical(torch.all),
        "prod": prod, "std": lambda x, dim, correction, keepdim: torch.std(x, dim, correction=correction, keepdim=keepdim),
        "std_mean": lambda x, dim, correction, keepdim: torch.std_mean(x, dim, correction=correction, keepdim=keepdim),
        "var_mean": lambda x, dim, correction, keepdim: torch.var_mean(x, dim, correction=correction, keepdim=keepdim),
        "aminmax": torch.aminmax, "max": torch.max, "min": torch.min,
        "count_nonzero": lambda x, dim, keepdim: (x != 0).sum(tuple(range(x.ndim)) if dim in (None, ()) else dim, keepdim=keepdim),
        "logsumexp": lambda x, dim, keepdim: torch.logsumexp(x, tuple(range(x.ndim)) if dim in (None, ()) else dim, keepdim) if x.ndim else x,
        "linalg_vector_norm": lambda x, ord, dim, keepdim, dtype: torch.linalg.vector_norm(
            x, ord, dim, keepdim, dtype=dtype and getattr(torch, dtype.name)),
        "softmax": torch.softmax, "log_softmax": torch.log_softmax,
        "softmax_backward": lambda dy, y, dim: aten._softmax_backward_data(dy, y, dim, y.dtype),
        "log_softmax_backward": lambda dy, y, dim: aten._log_softmax_backward_data(dy, y, dim, y.dtype),
        "layer_norm": lambda x, w, b, normalized_shape, eps: F.layer_norm(x, normalized_shape, w, b, eps),
        "native_layer_norm": lambda x, w, b, normalized_shape, eps: aten.native_layer_norm(
            x, normalized_shape, w, b, eps),
        "native_layer_norm_backward": lambda dy, x, m, r, w, b, normalized_shape: aten.native_layer_norm_backward(
            dy, x, normalized_shape, m, r, torch.ones(normalized_shape, dtype=x.dtype) if w is None else w,
            torch.ones(normalized_shape, dtype=x.dtype) if b is None else b, [True] * 3),
        "rms_norm": lambda x, w, eps: F.rms_norm(x, x.shape[-1:] if w is None else w.shape, w, eps),
        "fused_rms_norm": lambda x, w, normalized_shape, eps: aten._fused_rms_norm(x, normalized_shape, w, eps),
        "matmul": torch.matmul, "mm": torch.mm, "bmm": torch.bmm, "linear": F.linear, "addmm": torch.addmm,
        "baddbmm": torch.baddbmm,
        "scaled_dot_product_attention": F.scaled_dot_product_attention, "scaled_dot_product_flash_attention": flash,
        "scaled_dot_product_flash_attention_backward": flash_backward,
        "copy": torch.clone, "cat": torch.cat, "tril": torch.tril, "triu": torch.triu,
        "arange": lambda start, end, step, dtype: torch.arange(
            *(int(v) if dtype.is_integer else v for v in (start, end, step)), dtype=getattr(torch, dtype.name)),
        "full": lambda shape, value, dtype: torch.full(shape, value, dtype=getattr(torch, dtype.name)),
        "embedding": aten.embedding,
        "embedding_dense_backward": lambda dy, i, num_weights, padding_idx: aten.embedding_dense_backward(
            dy, i, num_weights, padding_idx, False),
        "gather": lambda x, i, dim: torch.gather(x, dim, i),
        "scatter_add": lambda x, i, src, dim: torch.scatter_add(x, dim, i, src),
        "index_select": lambda x, i, dim: torch.index_select(x, dim, i),
        "index_add": lambda x, i, s, dim, alpha: torch.index_add(
            x, dim, i, s, alpha=alpha if x.is_floating_point() else int(alpha)),
        "nll_loss": lambda x, t, w, reduction, ignore_index: F.nll_loss(
            x, t, w, reduction=reduction, ignore_index=ignore_index),
        "nll_loss_forward": lambda x, t, w, reduction, ignore_index: aten.nll_loss_forward(
            x, t, w, number[reduction], ignore_index),
        "nll_loss_backward": lambda dy, x, t, w, total, reduction, ignore_index: aten.nll_loss_backward(
            dy, x, t, w, number[reduction], ignore_index, total),
        "cross_entropy": F.cross_entropy,
    }


def as_torch(torch, x):
    return [v if v is None else tuple(as_torch(torch, v)) if isinstance(v, tuple) else torch.from_numpy(v) for v in x]


# (operator, sample): why PyTorch is not asked.  flash attention: aten's CPU kernel wants V == E, divides by zero
# without keys, and says logsumexp 0 where ours is -inf.  WITHOUT: aten's CPU has no fused_rms_norm_backward (the
# gradient check covers it) and other random bits.
FLASH = {"no_keys", "wide_value", "row_sees_nothing", "row_all_minus_inf", "causal_and_mask", "no_queries", "no_batch"}
DIFFERS = {"scaled_dot_product_flash_attention": FLASH, "scaled_dot_product_flash_attention_backward": FLASH,
           "index_add": {"scalar"}}
WITHOUT = {"fused_rms_norm_backward"} | {op.name for op in OPS.values() if op.random}


@pytest.mark.parametrize("op", cases(MINE, WITHOUT))
def test_reference_equals_torch(op):
    torch = pytest.importorskip("torch", reason="the outside reference")
    call = torch_calls(torch)[op.name]
    compared = 0
    for case in [d for d in op.dtypes if d.name in ("float64", "float32", "int64", "bool")]:
        for sample in op.samples:
            if sample.name in DIFFERS.get(op.name, ()) or not is_small(op, sample):
                continue
            attrs = attributes(op, sample, case)
            x = inputs(sample, case, rng_of(op.name, sample.name, case))
            want = tuple_of(op.reference(*as_reference(x), **attrs))
            got = tuple_of(call(*as_torch(torch, x), **attrs))
            compared += 1
            for y, r in zip(got, want, strict=True):
                r, y, rounded = np.asarray(r), y.double().numpy() if y.is_floating_point() else y.numpy(), y.dtype
                assert y.shape == r.shape, (sample.name, case, y.shape, r.shape)
                finite = r[np.isfinite(r)] if r.dtype.kind == "f" else r
                scale = np.abs(finite.astype(np.float64)).max(initial=1e-30)
                loose = {torch.float64: 1e-9, torch.float32: 3e-4, torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(rounded, 0)
                np.testing.assert_allclose(y.astype(np.float64), r.astype(np.float64), rtol=loose, atol=loose * scale,
                                           err_msg=f"{op.name} {sample.name} {case}")
    assert compared >= 5


# ---- gradients against central differences ------------------------------------------------------------------------
class Array:
    """The few things of a tensor that gradients use, over a float64 (or integer) NumPy array."""

    def __init__(self, a):
        self.a = np.asarray(a)
        self.shape, self.ndim = self.a.shape, self.a.ndim
        self.dtype = dtype(self.a.dtype)

    def reshape(self, shape):
        return Array(self.a.reshape(shape))

    def expand(self, shape):
        return Array(np.broadcast_to(self.a, shape))

    def permute(self, dims):
        return Array(self.a.transpose(dims))

    def transpose(self, i, j):
        return Array(self.a.swapaxes(i, j))


class Namespace:
    """``o`` of a gradient: every operator as a function that runs infer and the reference."""

    def __getattr__(self, name):
        op = OPS[name]
        positional = [p for p in op.params if not p.keyword_only]

        def call(*args, **kwargs):
            given = dict(zip((p.name for p in positional), args, strict=False)) | kwargs
            assert len(args) <= len(positional) and set(given) <= {p.name for p in op.params}, (name, given)
            tensors = [given.get(p.name) for p in op.tensors]
            attrs = op.attributes({k: v for k, v in given.items() if k not in {p.name for p in op.tensors}})
            assert not any(v is inspect.Parameter.empty for v in attrs.values()), (name, attrs)
            out = op.infer(*map(as_spec, tensors), **attrs)
            y = op.reference(*map(bare, tensors), **attrs)
            results = tuple(Array(np.asarray(v).astype(s.dtype.numpy)) for v, s in zip(tuple_of(y), tuple_of(out)))
            assert all(r.shape == s.shape for r, s in zip(results, tuple_of(out))), name
            return results if isinstance(out, tuple) else results[0]

        return call


def bare(t):
    return t if t is None else tuple(map(bare, t)) if isinstance(t, tuple) else t.a


def as_spec(t):
    return t if t is None else tuple(map(as_spec, t)) if isinstance(t, tuple) else Spec(t.shape, t.dtype)


def wrapped(x):
    return x if x is None else tuple(map(wrapped, x)) if isinstance(x, tuple) else Array(x)


def smooth_enough(sample):
    """Samples where differences say nothing: special values, and nothing to differentiate."""
    flat = [i for s in sample.inputs if s is not None for i in tuple_of(s)]
    return all(i.draw != "wide" for i in flat) and not any(i.values is not None and i.dtype != "bool" and not all(
        np.isfinite(i.values)) for i in flat) and all(np.prod(i.shape) for i in flat)


def direction(x, rng):
    if x is None or isinstance(x, np.ndarray) and x.dtype.kind != "f":
        return None
    return tuple(direction(v, rng) for v in x) if isinstance(x, tuple) else rng.standard_normal(x.shape)


def moved(x, v, h):
    return x if v is None else tuple(moved(a, b, h) for a, b in zip(x, v)) if isinstance(x, tuple) else x + h * v


def dot(g, v):
    if g is None or v is None:
        return 0.0
    if isinstance(g, tuple):
        return sum(dot(a, b) for a, b in zip(g, v, strict=True))
    assert g.shape == v.shape and g.dtype is F64, (g.shape, v.shape)
    return float((g.a * v).sum())


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in OPS.values() if op.grad and op.family in (*MINE, *SERVERS)])
def test_gradient_equals_differences(op):
    checked = 0
    for sample in op.samples:
        if sample.level != "core" or not is_small(op, sample):
            continue
        rng = rng_of("grad", op.name, sample.name)
        attrs = attributes(op, sample, F64)
        x = inputs(sample, F64, rng)
        if not smooth_enough(sample):
            draws = tuple(i if i is None else tuple(In(j.shape) for j in i) if isinstance(i, tuple) else
                          In(i.shape, "normal" if i.draw == "wide" else i.draw, i.dtype, i.high) for i in sample.inputs)
            x = inputs(Sample(sample.name, draws), F64, rng)
        x = tuple(v if v is None or isinstance(v, tuple) or v.dtype != np.float32 else v.astype(np.float64) for v in x)
        y = op.reference(*x, **attrs)
        if not np.isfinite(tuple_of(y)[0]).all():
            continue
        dy = rng.standard_normal(np.shape(tuple_of(y)[0]))
        outputs = tuple(map(Array, y)) if isinstance(y, tuple) else Array(y)
        grads = op.grad(Namespace(), Array(dy), wrapped(x), outputs, attrs)
        assert isinstance(grads, tuple) and len(grads) == len(op.tensors)
        v = tuple(None if g is None else direction(a, rng) for g, a in zip(grads, x))
        h = 1e-6
        up, down = (tuple_of(op.reference(*(moved(a, b, s) for a, b in zip(x, v)), **attrs))[0] for s in (h, -h))
        want = float((dy * (up - down)).sum()) / (2 * h)
        got = sum(dot(g, b) for g, b in zip(grads, v))
        size = sum(abs(dot(g, b)) for g, b in zip(grads, v)) + np.abs(dy).sum() * 1e-3 + 1e-3
        assert abs(got - want) <= 2e-5 * size, (sample.name, got, want)
        checked += 1
    assert checked >= 4


def test_types_of_specs():
    assert isinstance(F32, DType) and specs(Sample("s", (In((2,)), None, (In((1,)),))), F32) == (
        Spec((2,), F32), None, (Spec((1,), F32),))
