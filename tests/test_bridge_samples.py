"""The PyTorch bridge over torch's own samples of its operators (OpInfo): under ``enable`` a call gives what it gives without,
in value, dtype, shape, strides and error, for dense, permuted, expanded and sliced inputs.

The samples are torch's test data, a few a dtype of each operator the bridge serves; what a user meets stands in test_bridge_torch.py.
"""
from __future__ import annotations

import itertools
import sys
import types
import unittest
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch not installed")

import haian.bridges.torch as ht  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

#: Operators composed of overloads that the bridge serves, beside those that are named as one.
COMPOSED = {
    "__radd__", "__rdiv__", "__rmod__", "__rpow__", "__rsub__", "addr", "clone", "contiguous", "copysign", "cov", "diff", "einsum", "float_power", "full_like",
    "hstack", "isclose", "ldexp", "linalg.vector_norm", "log_softmax", "logaddexp2", "logit", "masked.softmax", "matmul", "nanmean", "new_full",
    "nn.functional.cross_entropy", "nn.functional.embedding", "nn.functional.group_norm", "nn.functional.layer_norm", "nn.functional.linear",
    "nn.functional.multi_head_attention_forward", "nn.functional.nll_loss", "nn.functional.normalize", "nn.functional.rms_norm",
    "nn.functional.scaled_dot_product_attention", "norm", "outer", "searchsorted", "softmax", "stack", "std", "tile", "to", "trapezoid", "var_mean", "xlogy",
    "zeros_like"}
DTYPES = (torch.float32, torch.int64, torch.bool)
SAMPLES = 2  # of an operator in a dtype; many times that were run when the bridge was written
CLOSE = {"rtol": 2e-4, "atol": 2e-5, "equal_nan": True}
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "permuted": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "expanded": lambda t: t[:1].expand_as(t),
    "sliced": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
}


@pytest.fixture(scope="module")
def infos():
    try:
        import expecttest  # noqa: F401 - torch's module of samples wants it, for the base class of tests only
    except ModuleNotFoundError:
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase, assert_expected_inline=None)
    from torch.testing._internal.common_methods_invocations import op_db

    packets = {name.split(".")[1].rstrip("_") for name in ht.aten_table()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield [op for op in op_db if op.name.split(".")[-1] in packets or op.name in COMPOSED]
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(op, dtype, grad=False, errors=False):
    """(input, args, kwargs) of torch's samples; none where it has none for the dtype."""
    if not op.supports_dtype(dtype, "cpu") or grad and not (op.supports_autograd and dtype.is_floating_point):
        return
    torch.default_generator.manual_seed(0)
    try:
        found = (e.sample_input for e in op.error_inputs("cpu")) if errors else op.sample_inputs("cpu", dtype, requires_grad=grad)
        for s in itertools.islice(found, SAMPLES if not errors else None):
            yield s.input, s.args, s.kwargs
    except Exception:  # noqa: BLE001 - some generators of torch's need SciPy or a device
        return


def copied(t):
    """A tensor of the same values and strides in memory of its own."""
    if not isinstance(t, torch.Tensor) or t.layout is not torch.strided:
        return t
    if not t.numel():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).requires_grad_(t.requires_grad)
    flat = t.detach().as_strided((1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride())),), (1,))
    return flat.clone().as_strided(t.shape, t.stride()).requires_grad_(t.requires_grad)


def answer(fn, *args, **kwargs):
    torch.default_generator.manual_seed(1)  # manual_seed asks every kind of accelerator as well: 3 ms
    try:
        return fn(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the answer
        return error


def with_gradients(op):
    def call(*args, **kwargs):
        out = op(*args, **kwargs)
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.requires_grad]
        roots = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not leaves or not roots:
            return out
        return out, torch.autograd.grad(roots, leaves, [torch.randn_like(t) for t in roots], allow_unused=True)

    return call


def into(op, empty):
    def call(*args, **kwargs):
        with torch.no_grad():
            like = tree_leaves(op(*args, **kwargs))
            outs = tuple(torch.empty(0, dtype=t.dtype) if empty else torch.ones_like(t) for t in like)
            op(*args, **kwargs, out=outs if len(outs) > 1 else outs[0])
        return outs

    return call


def difference(want, got):
    """"" or what differs first."""
    if isinstance(want, Exception) or isinstance(got, Exception):
        return "" if type(want) is type(got) and str(want) == str(got) else f"torch: {want!r:.200}, haian: {got!r:.200}"
    for w, g in zip(tree_leaves(want), tree_leaves(got), strict=True):
        if not isinstance(w, torch.Tensor) or w.layout is not torch.strided:
            continue
        if (w.dtype, w.shape) != (g.dtype, g.shape):
            return f"torch: {w.dtype} {tuple(w.shape)}, haian: {g.dtype} {tuple(g.shape)}"
        if w.numel() and any(n > 1 and a != b for n, a, b in zip(w.shape, w.stride(), g.stride())):
            return f"torch: strides {w.stride()}, haian: {g.stride()}, shape {tuple(w.shape)}"
        if not torch.allclose(g.detach().resolve_conj(), w.detach().resolve_conj(), **CLOSE):
            return f"torch: {w.flatten()[:5].tolist()}, haian: {g.flatten()[:5].tolist()}"
    return ""


def described(args):
    return str(tree_map(lambda t: f"{t.dtype}{tuple(t.shape)}/{t.stride()}" if isinstance(t, torch.Tensor) else t, args))[:300]


def differences(calls):
    once, again = ([tree_map(copied, c[2:]) for c in calls] for _ in range(2))
    want = [answer(c[1], *args, **kwargs) for c, (args, kwargs) in zip(calls, once)]
    with ht.enable() as on:
        got = [answer(c[1], *args, **kwargs) for c, (args, kwargs) in zip(calls, again)]
    found = [f"{name}: {why}; {described((args, kwargs))}" for (name, _, args, kwargs), w, g in zip(calls, want, got) if (why := difference(want=w, got=g))]
    return found, on


def test_samples_with_gradients_in_place_and_out(infos):
    calls = []
    for op, dtype, grad in itertools.product(infos, DTYPES, (False, True)):
        for first, args, kwargs in samples(op, dtype, grad):
            ways = {"": with_gradients(op)}
            if not grad and "out" not in kwargs:
                ways |= {"out": into(op, False), "empty out": into(op, True)} if op.supports_out else {}
                in_place = op.get_inplace()
                ways |= {"in place": in_place} if in_place and isinstance(first, torch.Tensor) else {}
            calls += [(f"{op.name} {way} {dtype}", fn, (first, *args), kwargs) for way, fn in ways.items()]
    found, on = differences(calls)
    assert len(calls) > 1500 and sum(on.hits.values()) > 5 * sum(on.passed.values())
    assert len(on.hits) > len(on.names) / 2
    assert not found, "\n".join(found)


def test_wrong_arguments_get_torch_s_own_words(infos):
    calls = [(op.name, op, (first, *args), kwargs) for op in infos if op.error_inputs_func for first, args, kwargs in samples(op, torch.float32, errors=True)]
    found, _ = differences(calls)
    assert len(calls) > 100
    assert not found, "\n".join(found)


class Recorder(TorchDispatchMode):
    """Calls of served overloads with tensors of two axes and more, up to three a name."""

    def __init__(self):
        super().__init__()
        self.served, self.calls = set(ht.aten_table()), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = f"aten.{str(func).removeprefix('aten.')}"
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        axes = max((t.ndim for t in tensors), default=0)
        group = self.calls.setdefault(name, {})
        if name in self.served and axes > 1 and len(group) < 40 and all(t.layout is torch.strided and t.numel() < 2000 for t in tensors):
            group.setdefault(str([(t.shape, t.dtype) for t in tensors]), (axes, func, *tree_map(copied, (args, kwargs))))
        return func(*args, **kwargs)


def laid(args, axes):
    """(name, arguments) with all of the largest tensors, the first or the last of them, in each layout."""
    large = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor) and t.ndim == axes and 1 not in t.shape[1:] and t.numel()]
    for layout, (which, group) in itertools.product(LAYOUTS, (("all", large), ("first", large[:1]), ("last", large[-1:]))):
        if which == "all" or len(large) > 1:
            chosen = {id(t) for t in group}
            moved = tree_map(lambda t: LAYOUTS[layout](t.detach()) if id(t) in chosen else t.detach() if isinstance(t, torch.Tensor) else t, args)  # noqa: B023
            yield f"{layout} {which}", moved


def test_results_lie_in_memory_as_torch_s(infos):
    recorder = Recorder()
    for op, dtype in itertools.product(infos, DTYPES):
        for first, args, kwargs in samples(op, dtype, op.supports_autograd and dtype.is_floating_point):
            with recorder:
                answer(with_gradients(op), copied(first), *args, **kwargs)
    calls = []
    for name, group in recorder.calls.items():
        for axes, func, args, kwargs in sorted(group.values(), key=lambda c: -c[0])[:2]:
            if name.startswith("aten._scaled_dot"):
                continue  # aten's kernel reads memory that is not its own unless the last axis is dense; test_bridge_torch.py has them
            calls += [(f"{name} {how}", func, *moved) for how, moved in laid((args, kwargs), axes)]
    found, on = differences(calls)
    assert len(calls) > 1000 and len(on.hits) > 100
    assert not found, f"{len(found)} of {len(calls)}\n" + "\n".join(found[:40])
