"""matmul, mm, bmm, addmm, baddbmm, linear: what they are.  How: kernels/cpu/matmul.c over kernels/cpu/gemm,
kernels/triton/matmul.py.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from .budget import Reduction
from .gradient import count, scaled, unbroadcast
from .infer import broadcast, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _inner(name, a, b, what_a="a", what_b="b"):
    """Raises unless the last axis of a equals the second to last (the only one of a vector) of b."""
    need_dtype(name, what_a, a, FLOATS)
    same_dtype(name, a, b)
    k = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != k:
        raise ShapeError(f"{name}: {what_a} is {a.shape}, {what_b} is {b.shape}; {what_a}'s last axis ({a.shape[-1]}) "
                         f"must equal {what_b}'s {'second to last' if b.ndim > 1 else 'only one'} ({k})")


def _infer_matmul(a: Spec, b: Spec) -> Spec:
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: a is {a.shape} and b is {b.shape}; both need one axis at least; use mul for scalars")
    _inner("matmul", a, b)
    lead = broadcast("matmul", a.shape[:-2], b.shape[:-2])
    return Spec((*lead, *(a.shape[-2:-1] if a.ndim > 1 else ()), *(b.shape[-1:] if b.ndim > 1 else ())), a.dtype)


def _infer_mm(a: Spec, b: Spec) -> Spec:
    need_rank("mm", "a", a, 2)
    need_rank("mm", "b", b, 2)
    _inner("mm", a, b)
    return Spec((a.shape[0], b.shape[1]), a.dtype)


def _batched(name, a, b, what_a, what_b):
    need_rank(name, what_a, a, 3)
    need_rank(name, what_b, b, 3)
    _inner(name, a, b, what_a, what_b)
    if a.shape[0] != b.shape[0]:
        raise ShapeError(f"{name}: {what_a} is {a.shape}, {what_b} is {b.shape}; batches {a.shape[0]} and {b.shape[0]} "
                         "must be equal")
    return Spec((a.shape[0], a.shape[1], b.shape[2]), a.dtype)


def _infer_bmm(a: Spec, b: Spec) -> Spec:
    return _batched("bmm", a, b, "a", "b")


def _fits(name, added, product, what="input"):
    """Raises unless ``added`` broadcasts to the product's shape."""
    if added.dtype is not product.dtype:
        raise DTypeError(f"{name}: {what} has dtype {added.dtype} and the product {product.dtype}; cast one first")
    if broadcast(name, added.shape, product.shape) != product.shape:
        raise ShapeError(f"{name}: {what} of shape {added.shape} does not broadcast to the product's {product.shape}; "
                         f"needs each axis equal or 1")
    return product


def _infer_addmm(input: Spec, mat1: Spec, mat2: Spec, *, beta: float, alpha: float) -> Spec:
    need_rank("addmm", "mat1", mat1, 2)
    need_rank("addmm", "mat2", mat2, 2)
    _inner("addmm", mat1, mat2, "mat1", "mat2")
    return _fits("addmm", input, Spec((mat1.shape[0], mat2.shape[1]), mat1.dtype))


def _infer_baddbmm(input: Spec, batch1: Spec, batch2: Spec, *, beta: float, alpha: float) -> Spec:
    return _fits("baddbmm", input, _batched("baddbmm", batch1, batch2, "batch1", "batch2"))


def infer_linear(x: Spec, weight: Spec, bias: Spec | None) -> Spec:
    need_dtype("linear", "x", x, FLOATS)
    need_rank("linear", "weight", weight, 2)
    same_dtype("linear", x, weight, bias)
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: x is {x.shape}, weight is {weight.shape}; x's last axis must equal weight's second "
                         f"({weight.shape[1]})")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: bias is {bias.shape}, weight is {weight.shape}; bias needs shape {weight.shape[:1]}")
    return Spec((*x.shape[:-1], weight.shape[0]), x.dtype)


def _matmul(a, b):
    with np.errstate(all="ignore"):
        return np.asarray(np.matmul(a, b))


def _addmm(input, mat1, mat2, *, beta, alpha):
    """beta == 0 ignores input, NaN and infinity in it included, as aten does."""
    with np.errstate(all="ignore"):
        product = alpha * np.matmul(mat1, mat2)
        return product + beta * input if beta else product


def _addmm_magnitude(input, mat1, mat2, *, beta, alpha):
    return _addmm(np.abs(input), np.abs(mat1), np.abs(mat2), beta=abs(beta), alpha=abs(alpha))


def _linear(x, weight, bias):
    with np.errstate(all="ignore"):
        y = np.matmul(x, weight.T)
        return np.asarray(y if bias is None else y + bias)


def _terms(a: Spec, b: Spec) -> int:
    return max(a.shape[-1], 1)


def _added_terms(input: Spec, mat1: Spec, mat2: Spec, **_: float) -> int:
    return mat1.shape[-1] + 1


def _linear_terms(x: Spec, weight: Spec, bias: Spec | None) -> int:
    return x.shape[-1] + 1


def _cost(infer, left=0):
    """left: which tensor's last axis is summed over."""
    def cost(item: int, *given: Spec | None, **attrs: Any) -> Cost:
        y = infer(*given, **attrs)
        return Cost(flops=2 * y.size * given[left].shape[-1],
                    bytes=sum(s.size * s.dtype.itemsize for s in (*given, y) if s is not None))

    return cost


def _matmul_grad(o, dy, inputs, y, attrs):
    a, b = inputs
    a2 = a.reshape((1, *a.shape)) if a.ndim == 1 else a
    b2 = b.reshape((*b.shape, 1)) if b.ndim == 1 else b
    lead = tuple(dy.shape)[:dy.ndim - (a.ndim > 1) - (b.ndim > 1)]
    g = dy.reshape((*lead, a2.shape[-2], b2.shape[-1]))
    da = unbroadcast(o, o.matmul(g, b2.transpose(-1, -2)), a2.shape)
    db = unbroadcast(o, o.matmul(a2.transpose(-1, -2), g), b2.shape)
    return da.reshape(tuple(a.shape)), db.reshape(tuple(b.shape))


def _mm_grad(o, dy, inputs, y, attrs):
    a, b = inputs
    return o.mm(dy, b.transpose(0, 1)), o.mm(a.transpose(0, 1), dy)


def _bmm_grad(o, dy, inputs, y, attrs):
    a, b = inputs
    return o.bmm(dy, b.transpose(1, 2)), o.bmm(a.transpose(1, 2), dy)


def _added_grad(product_grad):
    def grad(o, dy, inputs, y, attrs):
        added, *factors = inputs
        g = dy if attrs["alpha"] == 1 else scaled(o, dy, attrs["alpha"])
        d_added = unbroadcast(o, dy if attrs["beta"] == 1 else scaled(o, dy, attrs["beta"]), added.shape)
        return (d_added, *product_grad(o, g, factors, y, attrs))

    return grad


def _linear_grad(o, dy, inputs, y, attrs):
    x, weight, bias = inputs
    rows = count(x.shape[:-1])
    g = dy.reshape((rows, weight.shape[0]))
    dx = o.mm(g, weight).reshape(tuple(x.shape))
    dweight = o.mm(g.transpose(0, 1), x.reshape((rows, weight.shape[1])))
    return dx, dweight, None if bias is None else o.sum(g, (0,), False)


# M, K, N: 1s, primes, K = 0, tile edges and one past them (16, 32, 64, 128), skinny both ways, long K
_MKN = (("one", 1, 1, 1), ("prime", 7, 13, 11), ("no_k", 5, 0, 3), ("no_rows", 0, 4, 3), ("no_columns", 3, 4, 0),
        ("tile", 64, 64, 64), ("past_tile", 65, 129, 33), ("row", 1, 1031, 33), ("column", 65, 1031, 1),
        ("outer", 33, 1, 17), ("long_k", 5, 1100, 9))
_MODELS = (("bert_qkv", 128, 768, 768, "BERT-base projection, 128 tokens", "inference", ("full",)),
           ("bert_ffn", 128, 768, 3072, "BERT-base ffn, 128 tokens", "inference", ("full",)),
           ("resnet_conv2", 3136, 64, 256, "ResNet-50 conv2_x 1x1 as a product", "full", ("full", "vision")),
           ("resnet_conv3", 784, 512, 128, "ResNet-50 conv3_x 1x1 as a product", "full", ("vision",)),
           ("resnet_conv4", 196, 2304, 256, "ResNet-50 conv4_x 3x3 as a product", "full", ("full", "vision")),
           ("resnet_conv5", 49, 2048, 512, "ResNet-50 conv5_x 1x1 as a product", "full", ("vision",)),
           ("resnet_fc", 1, 2048, 1000, "ResNet-50 classifier", "inference", ("vision",)),
           ("llama_decode", 1, 4096, 11008, "Llama-7B ffn, decode", "full", ("quick", "full", "llm")),
           ("llama_decode_attention", 1, 4096, 4096, "Llama-7B projection, decode", "full", ("full", "llm")),
           ("llama_prefill", 128, 4096, 4096, "Llama-7B projection, 128 tokens", "full", ("full", "llm")),
           ("cube_512", 512, 512, 512, "", "full", ("full",)),
           ("cube_1024", 1024, 1024, 1024, "", "full", ("quick", "full")))


# just past blocks of the packed product (C: 512 terms and half as many again, 2048 columns), and more than 8 rows of tiles
# (Triton: what runs side by side)
_PAST = (("past_k", 67, 1041, 65), ("past_n", 17, 9, 2083), ("past_m", 1043, 5, 37))


def _pairs(build, models=True):
    """build(M, K, N) -> inputs."""
    ugly = [Sample(n, build(*mkn)) for n, *mkn in _MKN]
    ugly += [] if models else [Sample(n, build(*mkn), cover="once") for n, *mkn in _PAST]
    return ugly + [Sample(n, build(*mkn), {}, m, level, bench) for n, *mkn, m, level, bench in _MODELS if models]


def _mat(m, k, n):
    return In((m, k)), In((k, n))


_VECTORS = [Sample("dot", (In((13,)), In((13,)))), Sample("dot_nothing", (In((0,)), In((0,)))),
            Sample("matrix_vector", (In((33, 65)), In((65,)))), Sample("vector_matrix", (In((65,)), In((65, 33)))),
            Sample("vector_batch", (In((5,)), In((3, 5, 7)))), Sample("batch_vector", (In((3, 7, 5)), In((5,)))),
            Sample("broadcast", (In((2, 1, 3, 4)), In((5, 4, 6)))), Sample("broadcast_right", (In((5, 3, 4)), In((2, 1, 4, 6)))),
            Sample("broadcast_outer", (In((2, 5, 3, 4)), In((2, 1, 4, 6)))), Sample("broadcast_left", (In((2, 1, 3, 4)), In((2, 5, 4, 6)))),
            Sample("broadcast_three", (In((2, 1, 2, 3, 4)), In((3, 1, 4, 5)))), Sample("batch_matrix", (In((3, 7, 5)), In((5, 4)))),
            Sample("no_batch", (In((0, 3, 4)), In((0, 4, 5)))),
            Sample("transposed", (In((33, 17)), In((17, 31), layout="transposed"))),
            Sample("transposed_left", (In((33, 17), layout="transposed"), In((17, 31)))),
            Sample("bert_scores", (In((12, 128, 64)), In((12, 64, 128), layout="transposed")), {},
                   "BERT-base attention scores",
                   "inference", ("full",))]
_BATCHES = [Sample("one", (In((1, 1, 1)), In((1, 1, 1)))), Sample("prime", (In((3, 7, 13)), In((3, 13, 5)))),
            Sample("no_k", (In((2, 3, 0)), In((2, 0, 5)))), Sample("no_batch", (In((0, 3, 4)), In((0, 4, 5)))),
            Sample("past_tile", (In((2, 33, 65)), In((2, 65, 17)))),
            Sample("transposed", (In((2, 9, 17)), In((2, 17, 5), layout="transposed"))),
            Sample("many", (In((65, 3, 5)), In((65, 5, 2)))),
            Sample("batch_32", (In((32, 256, 128)), In((32, 128, 256))), {}, "", "full", ("full",))]
_ADDED = [Sample(n, (In((k_n[1],)), *_mat(m, *k_n)), a) for n, m, k_n, a in (
    ("one", 1, (1, 1), {}), ("prime", 7, (13, 11), {}), ("no_k", 5, (0, 3),
                                                         {}), ("scaled", 9, (17, 5), {"beta": 0.5, "alpha": -2.0}),
    ("past_tile", 65, (129, 33), {}), ("no_rows", 0, (4, 3), {}), ("row", 1, (1031, 33), {}))] + [
    Sample("past_blocks", (In((67, 35)), *_mat(67, 1041, 35)), {"beta": -0.5, "alpha": 2.0}, cover="once"),
    # 3 x - 3, exact in every dtype; with 3 x rounded to 16 bits first it is off by a third
    Sample("cancels", (In((2,), values=(1 + 2.0**-10, 1 + 2.0**-7)), In((2, 1), values=(-3.0, -3.0)), In((1, 2), values=(1.0, 1.0))),
           {"beta": 3.0}, cover="each"),
    Sample("full_input", (In((7, 5)), *_mat(7, 3, 5)), {"beta": -1.5}),
    Sample("column_input", (In((7, 1)), *_mat(7, 3, 5))),
    Sample("scalar_input", (In(()), *_mat(7, 3, 5))), Sample("transposed",
                                                             (In((5,)), In((7, 3)), In((3, 5), layout="transposed"))),
    Sample("beta_0_ignores_nan", (In((1, 2), values=(float("nan"), float("inf"))), *_mat(3, 4, 2)), {"beta": 0.0}),
    Sample("bert_ffn", (In((3072,)), In((128, 768)), In((768, 3072), layout="transposed")), {},
           "BERT-base ffn, 128 tokens",
           "inference", ("full",))]
_BADDED = [Sample("one", (In((1, 1, 1)), In((1, 1, 1)), In((1, 1, 1)))),
           Sample("prime", (In((3, 7, 5)), In((3, 7, 13)), In((3, 13, 5)))),
           Sample("row_input", (In((5,)), In((2, 9, 17)), In((2, 17, 5))), {"beta": 0.5, "alpha": -2.0}),
           Sample("batch_input", (In((3, 1, 5)), In((3, 7, 13)), In((3, 13, 5))), {"beta": 2.0}),
           Sample("batch_column", (In((3, 7, 1)), In((3, 7, 13)), In((3, 13, 5)))),
           Sample("past_blocks", (In((3, 1, 35)), In((3, 33, 1041)), In((3, 1041, 35))), cover="once"),
           Sample("no_k", (In((1, 3, 5)), In((2, 3, 0)), In((2, 0, 5)))),
           Sample("no_batch", (In((1, 3, 5)), In((0, 3, 4)), In((0, 4, 5)))),
           Sample("beta_0_ignores_nan", (In((2,), values=(float("nan"), float("inf"))), In((2, 3, 4)), In((2, 4, 2))),
                  {"beta": 0.0})]
_LINEAR = [Sample(n, (In(x), In((out, x[-1])), In((out,)) if b else None)) for n, x, out, b in (
    ("one", (1,), 1, True), ("vector", (13,), 7, True), ("prime", (7, 13), 11, True), ("plain", (7, 13), 11, False),
    ("batch", (3, 5, 17), 33, True), ("no_features", (4, 0), 3, True), ("no_rows", (0, 5), 3, True),
    ("past_tile", (65, 129), 33, True), ("row", (1, 1031), 33, False), ("decode_batch", (5, 1031), 65, True))] + [
    Sample("past_blocks", (In((3, 23, 1041)), In((37, 1041)), In((37,))), cover="once"),
    Sample("bert_ffn", (In((1, 128, 768)), In((3072, 768)), In((3072,))), {}, "BERT-base ffn, 128 tokens", "inference",
           ("full",)),
    Sample("bert_ffn_out", (In((1, 128, 3072)), In((768, 3072)), In((768,))), {}, "BERT-base ffn output, 128 tokens",
           "training", ("full",)),
    Sample("resnet_fc", (In((1, 2048)), In((1000, 2048)), In((1000,))), {}, "ResNet-50 classifier", "inference",
           ("vision",)),
    Sample("llama_decode", (In((1, 1, 4096)), In((11008, 4096)), None), {}, "Llama-7B ffn, decode", "full",
           ("full", "llm")),
    Sample("llama_prefill", (In((1, 128, 4096)), In((4096, 4096)), None), {}, "Llama-7B projection, 128 tokens", "full",
           ("llm",))]

_BAD_DTYPES = ("float32", "float64")
_BAD_MM = (Bad("inner_sizes", (In((3, 4)), In((5, 6))), ShapeError, ("(4)", "(5)", "last axis")),
           Bad("vector", (In((3, 4)), In((4,))), ShapeError, ("(4,)", "2 axes")),
           Bad("dtypes", (In((3, 4)), In((4, 5), dtype="float64")), DTypeError, _BAD_DTYPES),
           Bad("int32", (In((3, 4), "int"), In((4, 5), "int")), DTypeError, ("int32", "float32"), dtype="int32"))

op("matmul(Tensor a, Tensor b) -> Tensor", family="matmul", dtypes=FLOATS, infer=_infer_matmul, reference=_matmul,
   doc="Matrix product over the last axis of a and the second to last of b; leading axes broadcast, a vector is a row "
       "on the left and a column on the right and loses that axis again.  float16 and bfloat16 accumulate in float32.",
   budget=Reduction(terms=_terms), cost=_cost(_infer_matmul), samples=_pairs(_mat) + _VECTORS,
   bad=(_BAD_MM[0], Bad("scalar", (In(()), In((4,))), ShapeError, ("()", "one axis")),
        Bad("batches", (In((2, 3, 4)), In((3, 4, 5))), ShapeError, ("2 and 3", "broadcast")), *_BAD_MM[2:]),
   grad=_matmul_grad, names={"aten": ("mv", "dot"), "onnx": ("MatMul",), "paddle": ("matmul",)})

op("mm(Tensor a, Tensor b) -> Tensor", family="matmul", dtypes=FLOATS, infer=_infer_mm, reference=_matmul,
   doc="Product of two matrices, (M, K) times (K, N).", budget=Reduction(terms=_terms), cost=_cost(_infer_mm),
   samples=_pairs(_mat, False) + [Sample("transposed",
                                         (In((33, 17), layout="transposed"), In((17, 31), layout="transposed")))],
   bad=_BAD_MM, grad=_mm_grad, names={"aten": ("mm",), "paddle": ("mm",)})

op("bmm(Tensor a, Tensor b) -> Tensor", family="matmul", dtypes=FLOATS, infer=_infer_bmm, reference=_matmul,
   doc="Products of the matrices of two batches, (B, M, K) times (B, K, N).", budget=Reduction(terms=_terms),
   cost=_cost(_infer_bmm), samples=_BATCHES, grad=_bmm_grad, names={"aten": ("bmm",), "paddle": ("bmm",)},
   bad=(Bad("inner_sizes", (In((2, 3, 4)), In((2, 5, 6))), ShapeError, ("(4)", "(5)", "last axis")),
        Bad("batches", (In((2, 3, 4)), In((3, 4, 5))), ShapeError, ("2 and 3", "equal")),
        Bad("matrix", (In((3, 4)), In((4, 5))), ShapeError, ("(3, 4)", "3 axes")),
        Bad("dtypes", (In((2, 3, 4)), In((2, 4, 5), dtype="float64")), DTypeError, _BAD_DTYPES)))

op("addmm(Tensor input, Tensor mat1, Tensor mat2, *, float beta=1, float alpha=1) -> Tensor", family="matmul",
   dtypes=FLOATS,
   infer=_infer_addmm, reference=_addmm, budget=Reduction(terms=_added_terms, magnitude=_addmm_magnitude),
   doc="beta * input + alpha * mat1 @ mat2; input broadcasts to (M, N) and is not read when beta is 0.",
   cost=_cost(_infer_addmm, 1), samples=_ADDED, grad=_added_grad(_mm_grad),
   names={"aten": ("addmm",), "onnx": ("Gemm",), "paddle": ("addmm",)},
   bad=(Bad("inner_sizes", (In((6,)), In((3, 4)), In((5, 6))), ShapeError, ("(4)", "(5)", "last axis")),
        Bad("input_shape", (In((4,)), In((3, 4)), In((4, 5))), ShapeError, ("(4,)", "(3, 5)", "broadcast")),
        Bad("input_larger", (In((2, 3, 5)), In((3, 4)), In((4, 5))), ShapeError, ("(2, 3, 5)", "(3, 5)", "broadcast")),
        Bad("dtypes", (In((5,), dtype="float64"), In((3, 4)), In((4, 5))), DTypeError, _BAD_DTYPES)))

op("baddbmm(Tensor input, Tensor batch1, Tensor batch2, *, float beta=1, float alpha=1) -> Tensor", family="matmul",
   dtypes=FLOATS, infer=_infer_baddbmm, reference=_addmm,
   budget=Reduction(terms=_added_terms, magnitude=_addmm_magnitude),
   doc="beta * input + alpha * batch1 @ batch2 for each matrix of the batches; input broadcasts to (B, M, N) and is "
       "not read when beta is 0.", cost=_cost(_infer_baddbmm, 1), samples=_BADDED, grad=_added_grad(_bmm_grad),
   names={"aten": ("baddbmm",), "paddle": ("baddbmm",)},
   bad=(Bad("inner_sizes", (In((6,)), In((2, 3, 4)), In((2, 5, 6))), ShapeError, ("(4)", "(5)", "last axis")),
        Bad("input_shape", (In((4,)), In((2, 3, 4)), In((2, 4, 5))), ShapeError, ("(4,)", "(2, 3, 5)", "broadcast")),
        Bad("matrix", (In((5,)), In((3, 4)), In((4, 5))), ShapeError, ("(3, 4)", "3 axes"))))

op("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", family="matmul", dtypes=FLOATS, infer=infer_linear,
   reference=_linear, budget=Reduction(terms=_linear_terms), cost=_cost(infer_linear), samples=_LINEAR,
   grad=_linear_grad,
   doc="x @ weight^T + bias: x (..., K), weight (N, K), bias (N), result (..., N).", names={"paddle": ("linear",)},
   bad=(Bad("features", (In((3, 4)), In((6, 5)), None), ShapeError, ("(3, 4)", "(6, 5)", "(5)")),
        Bad("bias_shape", (In((3, 4)), In((6, 4)), In((4,))), ShapeError, ("bias", "(4,)", "(6,)")),
        Bad("weight_rank", (In((3, 4)), In((4,)), None), ShapeError, ("weight", "2 axes")),
        Bad("dtypes", (In((3, 4)), In((5, 4), dtype="float64"), None), DTypeError, _BAD_DTYPES)))
