"""The PyTorch bridge: values against torch's own kernels, autograd, hits that are asserted, calls that are passed on.

Differences from torch over torch's own samples of its operators are looked for in test_bridge_opinfo.py.
"""
from __future__ import annotations

import math
import multiprocessing
import subprocess
import sys
import threading

import pytest
from haian.hal.errors import ArgumentError

torch = pytest.importorskip("torch", reason="PyTorch not installed")

import haian.bridges.torch as ht  # noqa: E402
from haian.bridges.common import Pass  # noqa: E402

F = torch.nn.functional


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def both(fn, *tensors):
    """fn's result and gradients on torch's kernels and on haian's, with haian's counters."""
    def run():
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
        out = fn(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        loss = sum((o.double() * torch.arange(1, o.numel() + 1).reshape(o.shape).double().cos()).sum() for o in out if o.is_floating_point())
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            loss.backward()
        return [o.detach() for o in out], [t.grad for t in leaves]

    want = run()
    with ht.enable() as on:
        got = run()
    return want, got, on


CASES = {
    "add": (lambda x, y: x + y, ["aten.add.Tensor"]),
    "add_scalar": (lambda x, y: x + 2 * y, ["aten.add.Tensor", "aten.mul.Tensor"]),
    "broadcast": (lambda x, y: x * y[0] - y[:, :1], ["aten.mul.Tensor", "aten.sub.Tensor"]),
    "transposed": (lambda x, y: (x.t() + y.t()).contiguous(), ["aten.add.Tensor", "aten.clone.default"]),
    "inplace": (lambda x, y: x.clone().add_(y).mul_(3), ["aten.add_.Tensor", "aten.mul_.Tensor"]),
    "pow": (lambda x, y: x.abs().pow(2.5) + x.pow(2), ["aten.pow.Tensor_Scalar"]),
    "where": (lambda x, y: torch.where(x > y, x, 0.5), ["aten.where.self", "aten.gt.Tensor"]),
    "clamp": (lambda x, y: x.clamp(min=-0.5).clamp(max=0.5), ["aten.clamp.default"]),
    "gelu": (lambda x, y: F.gelu(x) + F.gelu(y, approximate="tanh"), ["aten.gelu.default", "aten.gelu_backward.default"]),
    "tanh_sigmoid": (lambda x, y: torch.tanh(x) * torch.sigmoid(y), ["aten.tanh_backward.default", "aten.sigmoid_backward.default"]),
    "relu": (lambda x, y: F.relu(x), ["aten.relu.default", "aten.threshold_backward.default"]),
    "sum": (lambda x, y: x.sum(0) + y.sum(), ["aten.sum.dim_IntList", "aten.sum.default"]),
    "mean_var": (lambda x, y: x.mean(1, keepdim=True) + y.var(1, keepdim=True), ["aten.mean.dim", "aten.var.correction"]),
    "amax": (lambda x, y: x.amax(1), ["aten.amax.default"]),
    "softmax": (lambda x, y: x.softmax(-1) + y.log_softmax(0), ["aten._softmax.default", "aten._log_softmax_backward_data.default"]),
    "layer_norm": (lambda x, y: F.layer_norm(x, x.shape[1:], y[0], y[1]), ["aten.native_layer_norm.default", "aten.native_layer_norm_backward.default"]),
    "linear": (lambda x, y: F.linear(x, y, y[:, 0]), ["aten.addmm.default", "aten.mm.default"]),
    "bmm": (lambda x, y: torch.bmm(x[None], y.t()[None]), ["aten.bmm.default"]),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), ["aten.cat.default"]),
    "tril": (lambda x, y: x.tril() + y.triu(1), ["aten.tril.default", "aten.triu.default"]),
    "cast": (lambda x, y: x.double() + y.double(), ["aten.copy_.default"]),
    "slice": (lambda x, y: x[1:, ::2] * 2, ["aten.mul.Tensor"]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_hits(name):
    fn, expected = CASES[name]
    x, y = torch.randn(7, 9), torch.randn(7, 9)
    (want, want_grads), (got, got_grads), on = both(fn, x, y)
    for w, g in zip(want + want_grads, got + got_grads):
        if w is None:
            assert g is None
            continue
        assert w.dtype == g.dtype and w.stride() == g.stride()
        torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-6)
    for overload in expected:
        assert on.hits[overload] > 0, f"{overload} was not served: {on}"


def test_indexing_and_losses():
    weight, ids = torch.randn(11, 5), torch.tensor([[1, 3, 3], [0, 10, 1]])
    target = torch.tensor([0, 4, -100, 2, 1, 3])

    def fn(w):
        e = F.embedding(ids, w)
        picked = torch.gather(w, 0, torch.tensor([[0, 1, 2, 3, 4]]))
        return F.cross_entropy(e.reshape(6, 5), target) + picked.sum() + w.index_select(1, torch.tensor([2, 2])).sum()

    (want, wg), (got, gg), on = both(fn, weight)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(gg[0], wg[0], rtol=1e-5, atol=1e-6)
    for overload in ("embedding", "embedding_dense_backward", "gather", "index_select", "nll_loss_forward", "nll_loss_backward"):
        assert on.hits[f"aten.{overload}.default"], f"{overload}: {on}"


@pytest.mark.parametrize("shared", [False, True])
def test_attention(shared):
    q = torch.randn(2, 4, 6, 8)
    k, v = torch.randn(2, 2 if shared else 4, 6, 8), torch.randn(2, 2 if shared else 4, 6, 8)
    (want, wg), (got, gg), on = both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared), q, k, v)
    for w, g in zip(want + wg, got + gg):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
    assert on.hits["aten._scaled_dot_product_flash_attention_for_cpu.default"]
    assert on.hits["aten._scaled_dot_product_flash_attention_for_cpu_backward.default"]


def test_out_overloads_resize_and_refuse():
    table = ht.aten_table()
    x = torch.randn(3)
    out = torch.empty(0)
    assert table["aten.exp.out"](x, out=out) is out
    torch.testing.assert_close(out, x.exp())
    y = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert table["aten.exp.out"](y, out=torch.empty(0)).stride() == torch.exp(y, out=torch.empty(0)).stride()
    for wrong in (torch.empty(3, dtype=torch.int64), torch.empty(4), torch.empty(1).expand(3)):
        with pytest.raises(Pass):
            table["aten.exp.out"](x, out=wrong)
    with ht.enable(), pytest.raises(RuntimeError, match="can't be cast"):
        torch.exp(x, out=torch.empty(3, dtype=torch.int64))


def test_calls_left_to_torch_are_right_and_counted():
    with ht.enable() as on:
        z = torch.ones(2, dtype=torch.complex64) + 1
        s = torch.exp(torch.tensor([[1.0, 2.0]]).to_sparse().to_dense())
    assert z.tolist() == [2, 2] and s.shape == (1, 2)
    assert on.passed["aten.add.Tensor"] == 1 and on.hits["aten.add.Tensor"] == 0
    assert "passed on" in str(on) and any(n == "aten.add.Tensor" for n, _ in on.reasons)


def test_errors_are_still_errors():
    with ht.enable(), pytest.raises(Exception, match=r"4|5"):
        torch.ones(3, 4) @ torch.ones(5, 3)
    with ht.enable(), pytest.raises(IndexError, match="out of range"):
        F.embedding(torch.tensor([7]), torch.ones(3, 2))


X, I = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([3, -4, 7])
MEMORY = torch.arange(8.0)
MANY = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(*[1] * 9, 4)  # more axes than haian takes
#: Calls whose numbers, axes or results are easily got wrong; what torch answers, an error included, is right.
EDGES = {
    "zero": lambda: [f(z) for z in (0.0, -0.0, 0, False) for f in (X.__truediv__, X.__mul__, X.clone().fill_, torch.zeros(2).fill_)],
    "zero_elsewhere": lambda: [torch.where(X > 5, X, -0.0), torch.where(X > 5, X, 0.0), X.masked_fill(X > 0, -0.0), torch.full((2,), -0.0), torch.full((2,), 0.0)],
    "one": lambda: [torch.ones(2, dtype=d) * v for d in (torch.int64, torch.float32, torch.bool) for v in (True, 1, 1.0)],
    "remainder": lambda: [X % 2.5, I % 3, I % -3, I % 2.5, I // 2, X // 0.7, 5 % I, 5.5 % I, torch.fmod(X, 1.5), torch.fmod(I, 2)],
    "copies_of_numbers": lambda: [torch.xlogy(X.abs(), 2.0), torch.xlogy(2, I.abs()), torch.copysign(X, -0.0), torch.copysign(I, -2),
                                  torch.searchsorted(torch.tensor([1.0, 2.0, 3.0]), 2.5), torch.zeros(2, dtype=torch.int64).fill_(2.7)],
    "no_axes": lambda: [f(X[None], dim=()) for f in (torch.any, torch.all, torch.sum, torch.mean, torch.amax, torch.var)],
    "no_list": lambda: [torch.any(X[None], dim=None), torch.all(X[None], dim=[0, 1]), torch.any(X, 0)],
    "left_with_numbers": lambda: [MANY * 0.1, MANY + 0.1, torch.where(MANY > 0, MANY, 0.1), MANY.sum(), X + 1j, torch.where(X > 0, X, 1j)],
    "integer_power": lambda: [I**2, I ** torch.tensor([-1, 2, -3]), 2**I.abs()],
    "negative_power": lambda: I**-1,
    "too_large": lambda: torch.ones(2, dtype=torch.uint8) + 300,
    "clamped_past_uint8": lambda: torch.ones(2, dtype=torch.uint8).clamp(max=300),
    "fractions_for_integers": lambda: F.hardtanh(I, -0.5, 0.5),
    "filled_past_int8": lambda: torch.zeros(2, dtype=torch.int8).fill_(300),
    "product": lambda: torch.ones(3, 4) @ torch.ones(5, 3),
    "broadcast": lambda: torch.ones(3) + torch.ones(4),
    "axis": lambda: torch.softmax(X, 5),
    "axis_twice": lambda: torch.sum(X, dim=(0, 0)),
    "no_element": lambda: torch.amax(torch.empty(0), 0),
    "choice": lambda: F.gelu(X, approximate="x"),
    "index": lambda: torch.index_select(X, 0, torch.tensor([9])),
    "index_in_place": lambda: torch.zeros(3).index_add_(0, torch.tensor([9]), torch.ones(1)),
    "target": lambda: F.nll_loss(torch.ones(2, 3), torch.tensor([5, 1])),
    "larger_than_self": lambda: X.clone().add_(torch.ones(2, 3)),
    "shared_self": lambda: torch.ones(1).expand(3).add_(1),
    "integer_self": lambda: I.clone().add_(1.5),
    "step": lambda: torch.arange(0, 3, 0),
    "shapes": lambda: torch.cat([torch.ones(2, 3), torch.ones(3, 2)]),
    "overlapping_out": lambda: torch.add(MEMORY[:4], 1, out=MEMORY[1:5]),
    "overlapping_self": lambda: MEMORY[1:].add_(MEMORY[:-1]),
    "overlapping_copy": lambda: MEMORY[1:].copy_(MEMORY[:-1]),
    "shared_without_overlap": lambda: [m := MEMORY.clone().reshape(4, 2), m[2:].copy_(m[:2]), m[:, 0].add_(m[:, 0]), m[:2].mul_(m[2:])],
    "gather_out": lambda: torch.gather(X, 0, torch.tensor([0]), out=torch.empty(1, dtype=torch.float64)),
}


def answer(fn):
    try:
        return fn()
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the answer
        return error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EDGES)
def test_edges_are_torch_s(name):
    want = answer(EDGES[name])
    with ht.enable():
        got = answer(EDGES[name])
    if isinstance(want, Exception):
        assert type(got) is type(want) and str(got) == str(want) and got.__context__ is None
        return
    for i, (w, g) in enumerate(zip(want, got)):
        assert (w.dtype, w.shape, w.stride()) == (g.dtype, g.shape, g.stride()), i
        torch.testing.assert_close(g, w, rtol=1e-6, atol=0, equal_nan=True)
        if w.dtype.is_floating_point:
            assert torch.equal(w.signbit(), g.signbit()) or w.isnan().any(), i


def test_the_sign_of_a_zero_number():
    with ht.enable() as on:
        assert (torch.ones(2) / 0.0).tolist() == [math.inf] * 2 and (torch.ones(2) / -0.0).tolist() == [-math.inf] * 2
    assert on.hits["aten.div.Tensor"] == 2 and not on.passed


@pytest.mark.parametrize("length", [3, 130])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 0, 3)])
def test_attention_lies_in_memory_as_torch_s(order, length):
    sizes = (2, 4, length, 16)
    q, k, v = (torch.randn([sizes[i] for i in order]).permute([order.index(i) for i in range(4)]) for _ in range(3))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    want = op(q, k, v, 0.0, True)
    with ht.enable() as on:
        got = op(q, k, v, 0.0, True)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(got[0], q, k, v, *got, 0.0, True)
    assert [t.stride() for t in got] == [t.stride() for t in want]
    wanted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(want[0], q, k, v, *want, 0.0, True)
    assert [t.stride() for t in grads] == [t.stride() for t in wanted]
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
    assert not on.passed


def test_only_exclude_and_close():
    with ht.enable(only=["aten.add.*"], exclude=["aten.add.out"]) as on:
        torch.ones(2) + torch.ones(2)
        torch.ones(2) * torch.ones(2)
        assert "aten.add.Tensor" in on.names and "aten.add.out" not in on.names and "aten.mul.Tensor" not in on.names
    assert on.hits == {"aten.add.Tensor": 1}
    torch.ones(2) + torch.ones(2)
    assert on.hits == {"aten.add.Tensor": 1}
    on.close()
    with pytest.raises(ArgumentError, match="matches none"):
        ht.enable(only=["aten.nonsense"])


def test_enabled_twice_in_any_order():
    x = torch.ones(3)
    outer, inner = ht.enable(), ht.enable(only=["aten.add.*", "aten.mul.*"])
    outer.close()
    assert ((x + x) * 2).tolist() == [4, 4, 4] and inner.hits["aten.add.Tensor"] == 1
    assert (x * 1j).tolist() == [1j] * 3  # passed on to torch's kernel, not to the outer one's
    inner.close()
    assert (x + x).tolist() == [2, 2, 2] and (x * 1j).tolist() == [1j] * 3
    assert inner.hits["aten.add.Tensor"] == 1 and outer.hits["aten.add.Tensor"] == 0
    with ht.enable() as outer:
        with ht.enable(only=["aten.add.*"]):
            pass
        x + x
    assert outer.hits["aten.add.Tensor"] == 1


def step(seed):
    """A training step's numbers from a seed alone."""
    random = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(s, 33, generator=random).requires_grad_() for s in (64, 33))
    y = F.layer_norm(F.gelu(x @ w + 0.5), (33,)).softmax(-1)
    (y * y).sum().backward()
    return [t.tolist() for t in (y.detach(), x.grad, w.grad)]


def test_threads_call_at_once():
    with ht.enable() as on:
        want = [step(k) for k in range(8)]
        calls, wrong = sum(on.hits.values()), []

        def work(k):
            wrong.extend(k for _ in range(5) if step(k) != want[k])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong and sum(on.hits.values()) == 6 * calls and not on.passed


def _child(results):
    torch.set_num_threads(1)  # as a loader's worker has it: OpenMP's threads are gone after a fork
    with ht.enable() as on:
        results.put((step(3), sum(on.hits.values()), sum(on.passed.values())))


class Steps(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.tensor(step(i)[0])


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes(method):
    with ht.enable():
        want = [step(k) for k in range(4)]
        context = multiprocessing.get_context(method)
        results = context.Queue()
        child = context.Process(target=_child, args=(results,))
        child.start()
        got, hits, passed = results.get(timeout=60)
        child.join()
        loaded = torch.cat(list(torch.utils.data.DataLoader(Steps(), 2, num_workers=2, multiprocessing_context=method)))
    assert child.exitcode == 0 and hits and not passed
    for g, w in zip(got, want[3]):
        torch.testing.assert_close(torch.tensor(g), torch.tensor(w), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.reshape(4, 64, 33), torch.tensor([w[0] for w in want]), rtol=1e-4, atol=1e-5)


def test_table_holds_no_composite_name():
    for name in ht.aten_table():
        key = name.removeprefix("aten.").removesuffix(".default")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{key}", "CompositeImplicitAutograd"), name


def test_dropout_follows_torch_s_seed():
    rule = ht.aten_table()["aten.native_dropout.default"]
    x = torch.ones(1000)
    torch.manual_seed(3)
    a, mask = rule(x, 0.25, True)
    torch.manual_seed(3)
    b, _ = rule(x, 0.25, True)
    assert torch.equal(a, b) and 0.6 < mask.float().mean() < 0.9
    torch.testing.assert_close(a, mask.float() / 0.75)
    with pytest.raises(Pass):
        rule(x, 0.25, False)


def test_census_counts_what_nobody_served():
    with ht.enable() as on, ht.Census(on) as census:
        x = torch.ones(3, 3)
        (x + x).t()
        torch.linalg.det(x)
    assert census.served["aten.add.Tensor"] == 1
    assert any("det" in name for name in census.missed) and census.share < 1


def test_without_torch_the_error_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nimport haian, numpy\nhaian.ops.exp(numpy.ones(2))\nimport haian.bridges.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "pip install 'haian[torch]'" in done.stderr


