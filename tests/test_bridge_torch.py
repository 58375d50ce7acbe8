"""The PyTorch bridge: values against torch's own kernels, autograd, hits that are asserted, calls that are passed on."""
from __future__ import annotations

import subprocess
import sys

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
    with pytest.raises(RuntimeError, match="can't be cast"):
        table["aten.exp.out"](x, out=torch.empty(3, dtype=torch.int64))


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
    with ht.enable(), pytest.raises(IndexError, match="7"):
        F.embedding(torch.tensor([7]), torch.ones(3, 2))


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


