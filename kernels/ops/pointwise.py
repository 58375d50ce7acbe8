"""Pointwise operators: each a formula of a few lines, and an independent NumPy reference that judges it.

``@pointwise`` fills in what never varies: schema, shape and dtype rule, cost, samples, refused inputs.  Gradients that are
operators themselves stand in pointwise_grad.py.  How a formula is computed: kernels/cpu/pointwise.c, kernels/triton/pointwise.py.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ...hal.dtype import ALL, BY_NAME, DType, dtype
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from . import formula
from .budget import Budget, Composite, Exact, Faithful
from .formula import m
from .gradient import scaled, unbroadcast, zeros
from .infer import broadcast, need_dtype, same_dtype
from .record import ANY, BOOL, FLOATS, INTEGERS, NUMBERS, Bad, Cost, In, Sample, Spec, op

__all__ = ["pointwise"]

SQRT_HALF = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
TWO_OVER_SQRT_PI = 1.1283791670955126
SQRT_2_OVER_PI = 0.7978845608028654
GELU_CUBIC = 0.044715  # of the tanh approximation, Hendrycks & Gimpel 2016, arXiv:1606.08415

# float32 and float16 subnormals, 1 +- an ulp, the edges where exp overflows and underflows, the largest float32
SPECIALS = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 6e-8, 1.17549435e-38, 1.0000001, 0.9999999,
            88.7, 88.8, -87.4, -103.9, -104.1, 65504.0, 3.4e38, -3.4e38, 1e15)


# ---- what all records share ------------------------------------------------------------------------------------------
def _infer(f: formula.Formula, dtypes: Sequence[DType], boolean: bool) -> Callable[..., Spec]:
    def infer(*specs: Spec, **attrs: Any) -> Spec:
        for name, s in zip(f.tensors, specs):
            need_dtype(f.name, name, s, BOOL if name in f.booleans else dtypes)
        case = same_dtype(f.name, *(s for name, s in zip(f.tensors, specs) if name not in f.booleans))
        if not case.is_floating:
            _need_integers(f, case, attrs)
        return Spec(broadcast(f.name, *(s.shape for s in specs)), BY_NAME["bool"] if boolean else case)

    return infer


def _need_integers(f: formula.Formula, case: DType, attrs: dict[str, Any]) -> None:
    """Attributes of an integer operand must be integers of its range: a silent cast would hide a mistake."""
    for name in f.attrs:
        value = attrs.get(name)
        if name in f.choices or value is None or case.kind == "b":
            continue
        info = np.iinfo(case.numpy)
        if not (math.isfinite(value) and value == int(value) and info.min <= value <= info.max):
            raise ArgumentError(f"{f.name}: {name} is {value} and the tensors are {case}; needs an integer from {info.min} to "
                                f"{info.max}; cast the tensors to a floating dtype first")


def _cost(f: formula.Formula, result: Callable[..., Spec]) -> Callable[..., Cost]:
    def cost(item: int, *specs: Spec, **attrs: Any) -> Cost:
        y = result(*specs, **attrs)
        read = sum(s.size * s.dtype.itemsize for s in specs)
        return Cost(flops=f.body(**attrs).operations * y.size, bytes=read + y.size * y.dtype.itemsize)

    return cost


# 0-d, 1, a prime, one past a tile of 1024, and a vector register's neighbours (15, 16, 17 floats)
_UGLY = (("scalar", ()), ("one", (1,)), ("prime", (131,)), ("past_tile", (1025,)), ("lanes", (3, 17)), ("rank5", (2, 3, 1, 5, 7)),
         ("empty", (0,)), ("empty_rows", (0, 5)))
# every one of these with every other; an odd whole number past 2^24 is no float32
CROSSED = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, math.inf, -math.inf, math.nan, 16777215.0, 1e-45, -1e-40, 3.4e38, -3.4e38)
# shapes of n operands that broadcast: a row, a column, an inner axis, a scalar, both ways at once, zero-size
_BROADCAST = (("row", (33, 17), (17,), (33, 1)), ("column", (33, 17), (33, 1), (1, 17)), ("inner", (5, 1, 7), (5, 33, 7), (33, 1)),
              ("with_scalar", (129,), (), (1,)), ("outer", (65, 1), (1, 1030), ()), ("empty_column", (0, 5), (1,), (0, 1)))
_MODELS = (("bert_ffn", (128, 3072), "BERT-base feed-forward, sequence 128", "inference", ("full",)),
           ("llama_ffn", (11008,), "Llama-7B feed-forward, one token", "llm", ("llm",)),
           ("square_4096", (4096, 4096), "", "full", ("full",)))
_QUICK = (*_MODELS[:-1], ("square_4096", (4096, 4096), "", "full", ("quick", "full")))  # the few of the short benchmark


def _samples(f: formula.Formula, draws: Sequence[str], domain: tuple[float, float] | None, attrs: Sequence[dict[str, Any]],
             models: Sequence[tuple], past: Sequence[tuple], crossed: bool) -> list[Sample]:
    """Every shape with the first attrs, then the other attrs on two shapes; domain: also its whole length and SPECIALS."""
    def ins(shapes: Sequence[tuple[int, ...]], how: Sequence[str] = draws) -> tuple[In, ...]:
        return tuple(In(s, "mask" if t in f.booleans else d, "bool" if t in f.booleans else None)
                     for t, s, d in zip(f.tensors, shapes, how))

    n, usual = len(f.tensors), attrs[0]
    tame = ["positive" if d == "positive" else "normal" for d in draws]
    out = [Sample(name, ins([shape] * n), usual) for name, shape in _UGLY]
    if n > 1:
        out += [Sample(name, ins(shapes[:n]), usual) for name, *shapes in _BROADCAST]
    turned = tuple(In(i.shape, i.draw, i.dtype, layout="transposed" if k == 0 else "") for k, i in enumerate(ins([(65, 130)] * n)))
    out.append(Sample("transposed", turned, usual))
    if domain:
        values = (*np.linspace(*domain, 499).tolist(), *SPECIALS)
        first = In((len(values),), values=values)
        out.append(Sample("domain", (first, *ins([(len(values),)] * n)[1:]), usual))
    if crossed:
        x, y = zip(*((a, b) for a in CROSSED for b in CROSSED))
        out.append(Sample("crossed", (In((len(x),), dtype="float32", values=x), In((len(y),), dtype="float32", values=y)), usual))
    for name, *shapes in past:
        found = ins(shapes, tame)
        out.append(Sample(name, tuple(In(i.shape, dtype="int64") for i in found) if name.endswith("int64") else found, usual, cover="once"))
    for extra in attrs[1:]:
        label = "_".join(f"{k}_{v}" for k, v in extra.items()).replace("-", "minus_").replace(".", "_")
        out += [Sample(f"{name}_{label}", ins([shape] * n), extra) for name, shape in (_UGLY[3], _UGLY[4])]
    return out + [Sample(name, ins([shape] * n, tame), own[0] if own else usual, model, level, bench)
                  for name, shape, model, level, bench, *own in models]


def _bad(f: formula.Formula, dtypes: Sequence[DType], attrs: dict[str, Any]) -> list[Bad]:
    masks = ["bool" if t in f.booleans else None for t in f.tensors]
    out = []
    if len(f.tensors) > 1:
        shapes = [(3, 4), (5,), (1,)]
        out.append(Bad("shapes_differ", tuple(In(s, dtype=d) for s, d in zip(shapes, masks)), ShapeError, ("(3, 4)", "(5,)", f.name),
                       attrs, dtypes[0].name))
        if masks.count(None) > 1:
            kinds = [d or ("float32" if i == masks.index(None) else "int32") for i, d in enumerate(masks)]
            out.append(Bad("dtypes_differ", tuple(In((3,), "positive", d) for d in kinds), DTypeError, ("int32", f.name), attrs))
    refused = next((d for d in (BY_NAME[n] for n in ("int32", "bool", "float32", "complex64")) if d not in dtypes), None)
    if refused:
        out.append(Bad(refused.name, tuple(In((3,), dtype=d) for d in masks), DTypeError, (refused.name, f.name), attrs, refused.name))
    if BY_NAME["int32"] in dtypes and any(isinstance(v, float) for v in attrs.values()):
        half = {k: v + 0.5 if isinstance(v, float) else v for k, v in attrs.items()}
        out.append(Bad("fraction_for_int32", tuple(In((3,), "int", d) for d in masks), ArgumentError, ("int32", "integer"), half, "int32"))
    return out


def pointwise(reference: Callable[..., Any], *, dtypes: Sequence[DType] = FLOATS, budget: Budget | None = None,
              draws: Sequence[str] = (), domain: tuple[float, float] | None = None, attrs: Sequence[dict[str, Any]] = ({},),
              grad: Callable[..., tuple] | None = None, golden: tuple = (), models: Sequence[tuple] = _MODELS, past: Sequence[tuple] = (),
              **names: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Define a pointwise operator: the decorated function is its formula (formula.py), its docstring the operator's.

    reference: ``reference(*arrays, **attrs)`` in float64 (integers and bools as they are), written independently.
    draws: how samples draw each tensor (default ``wide``).  domain: where the operator is interesting; adds a sample along
    it with SPECIALS (float-only operators).  attrs: attribute sets to try, the first one everywhere.  past: shapes just past a
    size where the kernels go another way, which is the same for all operators: a few stand for them.
    names: what other worlds call it: ``aten=("exp",), onnx=("Exp",)``.

    Raises:
        FormulaError: the function is not in the scalar language.
    """
    def define(fn: Callable) -> Callable:
        f = formula.read(fn)
        how = draws or ["wide"] * len(f.tensors)
        crossed = len(f.tensors) == 2 and not f.booleans and BY_NAME["float32"] in dtypes and not isinstance(budget, Composite)
        op(**described(f, reference, tuple(dtypes), attrs[0]), budget=budget or Faithful(),
           samples=_samples(f, how, domain, attrs, models, past, crossed), bad=_bad(f, dtypes, attrs[0]), grad=grad, names=names, golden=golden)
        return fn

    return define


def described(f: formula.Formula, reference: Callable[..., Any], dtypes: tuple[DType, ...], attrs: dict[str, Any]) -> dict[str, Any]:
    """What a formula alone says of its operator: schema, shapes, cost; haian's own operators and users'."""
    infer = _infer(f, dtypes, f.body(**attrs).boolean)
    tensors = ", ".join(f"Tensor {t}" for t in f.tensors)
    listed = [f"{{{'|'.join(f.choices[a])}}} {a}='{d}'" if a in f.choices else f"float? {a}=None" if d is None else
              f"float {a}" if not isinstance(d, (int, float)) else f"float {a}={d}" for a, d in f.attrs.items()]
    schema = f"{f.name}({tensors}{', *, ' if listed else ''}{', '.join(listed)}) -> Tensor"
    return {"schema": schema, "family": "pointwise", "doc": f.doc, "dtypes": dtypes, "infer": infer, "cost": _cost(f, infer), "formula": f.fn,
            "rule": "same" if len(f.tensors) == 1 else "broadcast", "reference": _quiet(reference)}


def _quiet(reference: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*arrays: Any, **attrs: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(reference(*arrays, **attrs))

    return quiet


def _unary(local: Callable) -> Callable[..., tuple]:
    """A gradient rule of one input: local(o, dy, x, y, attrs)."""
    return lambda o, dy, inputs, y, attrs: (local(o, dy, inputs[0], y, attrs),)


def _binary(left: Callable, right: Callable) -> Callable[..., tuple]:
    """A gradient rule of two inputs that broadcast: left(o, dy, x, y, result, attrs), right likewise."""
    def grad(o: Any, dy: Any, inputs: tuple, result: Any, attrs: dict[str, Any]) -> tuple:
        x, y = inputs
        return tuple(unbroadcast(o, rule(o, dy, x, y, result, attrs), t.shape) for rule, t in ((left, x), (right, y)))

    return grad


def _same(x: np.ndarray, value: float) -> Any:
    """value as a NumPy scalar of x's dtype (integers stay integers)."""
    return x.dtype.type(value)


# ---- arithmetic ------------------------------------------------------------------------------------------------------
# more than two tasks of 16 tiles of 1024 (C), the last ones a rest; results written past the caches (C, 4 MiB: of int64, which is
# cheap to judge), flat and by tiles
_SPAN, _STREAM = (37013,), (524341,)
_ALPHAS = ({"alpha": 1.0}, {"alpha": 2.0}, {"alpha": 0.0})


@pointwise(lambda x, y, alpha: x + y * _same(y, alpha), dtypes=ANY, budget=Faithful(k=0.5), attrs=_ALPHAS, models=_QUICK,
           past=(("past_span", _SPAN, _SPAN), ("streamed_int64", _STREAM, _STREAM), ("streamed_rows_int64", (1031, 521), (521,))),
           grad=_binary(lambda o, dy, x, y, r, a: dy, lambda o, dy, x, y, r, a: dy if a["alpha"] == 1 else scaled(o, dy, a["alpha"])),
           golden=((1.5, 2.25, 3.75),), aten=("add.Tensor", "add.Scalar"), onnx=("Add",), paddle=("add",))
def add(x, y, *, alpha=1):
    """x + alpha y.  Integers wrap; on bools it is "or"."""
    return x + alpha * y


@pointwise(lambda x, y, alpha: x - y * _same(y, alpha), dtypes=NUMBERS, budget=Faithful(k=0.5), attrs=_ALPHAS,
           grad=_binary(lambda o, dy, x, y, r, a: dy, lambda o, dy, x, y, r, a: scaled(o, dy, -a["alpha"])),
           golden=((1.5, 2.25, -0.75),), aten=("sub.Tensor", "sub.Scalar"), onnx=("Sub",), paddle=("subtract",))
def sub(x, y, *, alpha=1):
    """x - alpha y.  Integers wrap; bools are refused, as in aten."""
    return x - alpha * y


@pointwise(np.multiply, dtypes=ANY, budget=Faithful(k=0.5),
           grad=_binary(lambda o, dy, x, y, r, a: o.mul(dy, y), lambda o, dy, x, y, r, a: o.mul(dy, x)),
           golden=((1.5, 2.25, 3.375),), aten=("mul.Tensor", "mul.Scalar"), onnx=("Mul",), paddle=("multiply",))
def mul(x, y):
    """x y.  Integers wrap; on bools it is "and"."""
    return x * y


@pointwise(np.divide, budget=Faithful(k=0.5),
           grad=_binary(lambda o, dy, x, y, r, a: o.div(dy, y), lambda o, dy, x, y, r, a: o.neg(o.mul(dy, o.div(r, y)))),
           golden=((1.0, 8.0, 0.125),), aten=("div.Tensor", "div.Scalar"), onnx=("Div",), paddle=("divide",))
def div(x, y):
    """x / y of floats, correctly rounded.  Integers are refused: cast first, as aten's promotion does."""
    return x / y


def _pow(x, y):
    if x.dtype.kind == "f":
        return np.power(x, y)
    powers = np.power(x, np.maximum(y, 0))
    odd = (y & 1) != 0
    inverse = np.where(x == 1, 1, np.where((x.astype(np.int64) == -1), np.where(odd, -1, 1), 0)).astype(x.dtype)
    return np.where(y < 0, inverse, powers)


def _pow_grad_x(o, dy, x, y, r, attrs):
    one, zero = o.full((), 1.0, dtype=x.dtype), zeros(o, (), x.dtype)
    slope = o.mul(y, o.pow(x, o.sub(y, one)))
    return o.mul(dy, o.where(o.eq(y, zero), zero, slope))


def _pow_grad_y(o, dy, x, y, r, attrs):
    zero = zeros(o, (), x.dtype)
    flat = o.logical_and(o.eq(x, zero), o.ge(y, zero))
    return o.mul(dy, o.where(flat, zero, o.mul(r, o.log(x))))


@pointwise(_pow, dtypes=NUMBERS, budget=Faithful(k=4), draws=("positive", "normal"), grad=_binary(_pow_grad_x, _pow_grad_y),
           golden=((2.0, 10.0, 1024.0), (-2.0, 3.0, -8.0), (0.0, 0.0, 1.0), (4.0, -0.5, 0.5)), domain=(-4.0, 4.0),
           aten=("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar"), onnx=("Pow",), paddle=("elementwise_pow",))
def pow(x, y):
    """x to the power y, C99's special cases.  Integers wrap; a negative exponent gives 0, or +-1 for x = +-1."""
    return m.pow(x, y)


@pointwise(np.negative, dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(lambda o, dy, x, y, a: o.neg(dy)),
           golden=((2.0, -2.0),), aten=("neg",), onnx=("Neg",), paddle=("neg",))
def neg(x):
    """-x.  Integers wrap (the least integer stays)."""
    return -x


@pointwise(np.abs, dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(lambda o, dy, x, y, a: o.mul(dy, o.sign(x))),
           golden=((-2.0, 2.0),), aten=("abs",), onnx=("Abs",), paddle=("abs",))
def abs(x):
    """|x|.  The least integer stays."""
    return m.abs(x)


def _sign(x):
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


@pointwise(_sign, dtypes=NUMBERS, budget=Exact(), grad=_unary(lambda o, dy, x, y, a: zeros(o, x.shape, x.dtype)),
           golden=((-3.0, -1.0), (0.0, 0.0)), aten=("sign", "sgn"), onnx=("Sign",), paddle=("sign",))
def sign(x):
    """-1, 0 or 1; 0 for NaN, as in aten."""
    return m.where(x > 0, 1, m.where(x < 0, -1, 0))


def _pick(better: str) -> Callable[..., tuple]:
    """Gradient of maximum and minimum: to the chosen one, half to each on ties (aten)."""
    def to(o, dy, mine, other):
        half = scaled(o, dy, 0.5)
        chosen = getattr(o, better)(mine, other)
        return o.where(chosen, dy, o.where(o.eq(mine, other), half, zeros(o, (), dy.dtype)))

    return _binary(lambda o, dy, x, y, r, a: to(o, dy, x, y), lambda o, dy, x, y, r, a: to(o, dy, y, x))


@pointwise(np.maximum, dtypes=ANY, budget=Exact(), grad=_pick("gt"), golden=((1.0, 2.0, 2.0),), aten=("maximum",), onnx=("Max",),
           paddle=("maximum",))
def maximum(x, y):
    """The larger of x and y; NaN if either is NaN."""
    return m.maximum(x, y)


@pointwise(np.minimum, dtypes=ANY, budget=Exact(), grad=_pick("lt"), golden=((1.0, 2.0, 1.0),), aten=("minimum",), onnx=("Min",),
           paddle=("minimum",))
def minimum(x, y):
    """The smaller of x and y; NaN if either is NaN."""
    return m.minimum(x, y)


def _clamp(x, min, max):
    low = x if min is None else np.maximum(x, _same(x, min))
    return low if max is None else np.minimum(low, _same(x, max))


def _clamp_grad(o, dy, x, y, attrs):
    inside = o.eq(x, x)  # NaN has no gradient
    for bound, holds in (("min", o.ge), ("max", o.le)):
        if attrs[bound] is not None:
            inside = o.logical_and(inside, holds(x, o.full((), attrs[bound], dtype=x.dtype)))
    return o.where(inside, dy, zeros(o, (), dy.dtype))


@pointwise(_clamp, dtypes=NUMBERS, budget=Exact(), grad=_unary(_clamp_grad), golden=(),
           attrs=({"min": 0.0, "max": 4.0}, {"min": 1.0, "max": None}, {"min": None, "max": 3.0}, {"min": 5.0, "max": 2.0}),
           aten=("clamp", "clamp_min", "clamp_max"), onnx=("Clip",), paddle=("clip",))
def clamp(x, *, min=None, max=None):
    """x limited to [min, max]; NaN stays; max where min > max.  A bound that is None does not limit."""
    low = x if min is None else m.maximum(x, min)
    return low if max is None else m.minimum(low, max)


@pointwise(lambda x: np.maximum(x, _same(x, 0)), dtypes=NUMBERS, budget=Exact(),
           grad=_unary(lambda o, dy, x, y, a: o.threshold_backward(dy, y)), golden=((-1.0, 0.0), (2.0, 2.0)), aten=("relu",),
           onnx=("Relu",), paddle=("relu",))
def relu(x):
    """max(x, 0); NaN stays."""
    return m.maximum(x, 0)


# ---- elementary functions --------------------------------------------------------------------------------------------
@pointwise(np.exp, models=_QUICK, domain=(-110.0, 95.0), past=(("past_span", _SPAN),), grad=_unary(lambda o, dy, x, y, a: o.mul(dy, y)), golden=((1.0, math.e), (0.0, 1.0)),
           aten=("exp",), onnx=("Exp",), paddle=("exp",))
def exp(x):
    """e to the power x."""
    return m.exp(x)


@pointwise(np.log, domain=(0.0, 4.0), draws=("positive",), grad=_unary(lambda o, dy, x, y, a: o.div(dy, x)),
           golden=((math.e, 1.0), (0.5, -math.log(2))), aten=("log",), onnx=("Log",), paddle=("log",))
def log(x):
    """Natural logarithm; -inf at 0, NaN below."""
    return m.log(x)


@pointwise(np.sqrt, budget=Faithful(k=0.5), domain=(0.0, 10.0), draws=("positive",),
           grad=_unary(lambda o, dy, x, y, a: o.div(scaled(o, dy, 0.5), y)), golden=((2.25, 1.5),), aten=("sqrt",), onnx=("Sqrt",),
           paddle=("sqrt",))
def sqrt(x):
    """Square root, correctly rounded; NaN below 0."""
    return m.sqrt(x)


@pointwise(lambda x: 1 / np.sqrt(x), domain=(0.0, 10.0), draws=("positive",),
           grad=_unary(lambda o, dy, x, y, a: o.mul(scaled(o, dy, -0.5), o.mul(y, o.mul(y, y)))), golden=((4.0, 0.5),),
           aten=("rsqrt",), paddle=("rsqrt",))
def rsqrt(x):
    """1 / sqrt(x); inf at 0, NaN below."""
    return m.rsqrt(x)


@pointwise(lambda x: 1 / x, budget=Faithful(k=0.5), domain=(-4.0, 4.0),
           grad=_unary(lambda o, dy, x, y, a: o.neg(o.mul(dy, o.mul(y, y)))), golden=((8.0, 0.125),), aten=("reciprocal",),
           onnx=("Reciprocal",), paddle=("reciprocal",))
def reciprocal(x):
    """1 / x, correctly rounded."""
    return 1.0 / x


@pointwise(np.sin, domain=(-30.0, 30.0), grad=_unary(lambda o, dy, x, y, a: o.mul(dy, o.cos(x))),
           golden=((1.0, math.sin(1)), (1e15, 0.8582727931702359)), aten=("sin",), onnx=("Sin",), paddle=("sin",))
def sin(x):
    """Sine of x in radians, right for every finite x; NaN for infinities."""
    return m.sin(x)


@pointwise(np.cos, domain=(-30.0, 30.0), grad=_unary(lambda o, dy, x, y, a: o.neg(o.mul(dy, o.sin(x)))),
           golden=((1.0, math.cos(1)),), aten=("cos",), onnx=("Cos",), paddle=("cos",))
def cos(x):
    """Cosine of x in radians, right for every finite x; NaN for infinities."""
    return m.cos(x)


@pointwise(np.tanh, domain=(-10.0, 10.0), grad=_unary(lambda o, dy, x, y, a: o.tanh_backward(dy, y)), golden=((0.5, math.tanh(0.5)),),
           aten=("tanh",), onnx=("Tanh",), paddle=("tanh",))
def tanh(x):
    """Hyperbolic tangent."""
    return m.tanh(x)


def _expit(x):
    from scipy.special import expit

    return expit(x)


@pointwise(_expit, domain=(-110.0, 20.0), grad=_unary(lambda o, dy, x, y, a: o.sigmoid_backward(dy, y)),
           golden=((0.0, 0.5), (1.0, 0.7310585786300049)), aten=("sigmoid",), onnx=("Sigmoid",), paddle=("sigmoid",))
def sigmoid(x):
    """1 / (1 + exp(-x)); underflows gradually on the far negative side."""
    return m.sigmoid(x)


def _erf(x):
    from scipy.special import erf

    return erf(x)


def _erf_grad(o, dy, x, y, attrs):
    return o.mul(scaled(o, dy, TWO_OVER_SQRT_PI), o.exp(o.neg(o.mul(x, x))))


@pointwise(_erf, domain=(-5.0, 5.0), grad=_unary(_erf_grad), golden=((1.0, math.erf(1)), (-0.25, math.erf(-0.25))), aten=("erf",),
           onnx=("Erf",), paddle=("erf",))
def erf(x):
    """Error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return m.erf(x)


# ---- activations -----------------------------------------------------------------------------------------------------
def _gelu(x, approximate):
    from scipy.special import expit, ndtr

    if approximate == "tanh":  # (1 + tanh z) / 2 = expit(2 z)
        return x * expit(2 * SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3))
    return x * ndtr(x)


@pointwise(_gelu, budget=Composite(), domain=(-9.0, 9.0), attrs=({"approximate": "none"}, {"approximate": "tanh"}),
           models=(*_MODELS, ("square_4096_tanh", (4096, 4096), "", "full", ("quick", "full"), {"approximate": "tanh"})),
           grad=_unary(lambda o, dy, x, y, a: o.gelu_backward(dy, x, approximate=a["approximate"])),
           golden=((0.0, 0.0), (1.0, 0.8413447460685429), (-1.0, -0.15865525393145707)), aten=("gelu",), onnx=("Gelu",), paddle=("gelu",))
def gelu(x, *, approximate: Literal["none", "tanh"] = "none"):
    """Gaussian error linear unit, x Phi(x); with approximate="tanh" the approximation of Hendrycks and Gimpel."""
    if approximate == "tanh":
        return 0.5 * x * (1.0 + m.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)))
    return 0.5 * x * (1.0 + m.erf(x * SQRT_HALF))


def _silu(x):
    from scipy.special import expit

    return x * expit(x)


@pointwise(_silu, budget=Composite(), domain=(-110.0, 20.0), grad=_unary(lambda o, dy, x, y, a: o.silu_backward(dy, x)),
           golden=((0.0, 0.0), (1.0, 0.7310585786300049)), aten=("silu",), onnx=("Swish",), paddle=("silu", "swish"))
def silu(x):
    """x / (1 + exp(-x)), also called swish."""
    return x * m.sigmoid(x)


# ---- selection, several operands -------------------------------------------------------------------------------------
def _where_grad(o, dy, inputs, result, attrs):
    condition, x, y = inputs
    zero = zeros(o, (), dy.dtype)
    return None, unbroadcast(o, o.where(condition, dy, zero), x.shape), unbroadcast(o, o.where(condition, zero, dy), y.shape)


@pointwise(np.where, dtypes=ANY, budget=Exact(signed_zero=True), grad=_where_grad, models=_QUICK,
           past=(("past_span", _SPAN, _SPAN, _SPAN),), aten=("where.self",), onnx=("Where",),
           paddle=("where",))
def where(condition: bool, x, y):
    """x where condition is true, else y; all three broadcast."""
    return m.where(condition, x, y)


def _masked_fill_grad(o, dy, inputs, result, attrs):
    return unbroadcast(o, o.masked_fill(dy, inputs[1], value=0.0), inputs[0].shape), None


@pointwise(lambda x, mask, value: np.where(mask, _same(x, value), x), dtypes=ANY, budget=Exact(signed_zero=True),
           attrs=({"value": 3.0}, {"value": 0.0}), past=(("past_span", _SPAN, _SPAN),), grad=_masked_fill_grad, aten=("masked_fill.Scalar", "masked_fill.Tensor"),
           paddle=("masked_fill",))
def masked_fill(x, mask: bool, *, value):
    """value where mask is true, else x; both broadcast."""
    return m.where(mask, value, x)


def _addcmul_grad(o, dy, inputs, result, attrs):
    x, a, b = inputs
    g = scaled(o, dy, attrs["value"])
    return tuple(unbroadcast(o, t, i.shape) for t, i in ((dy, x), (o.mul(g, b), a), (o.mul(g, a), b)))


@pointwise(lambda x, a, b, value: x + _same(x, value) * a * b, dtypes=NUMBERS, budget=Composite(), grad=_addcmul_grad,
           attrs=({"value": 1.0}, {"value": 3.0}), golden=((1.0, 2.0, 3.0, 7.0),), aten=("addcmul",))
def addcmul(x, a, b, *, value=1):
    """x + value a b.  Integers wrap."""
    return x + value * a * b


def _addcdiv_grad(o, dy, inputs, result, attrs):
    x, a, b = inputs
    g = o.div(scaled(o, dy, attrs["value"]), b)
    return tuple(unbroadcast(o, t, i.shape) for t, i in ((dy, x), (g, a), (o.neg(o.mul(g, o.div(a, b))), b)))


@pointwise(lambda x, a, b, value: x + value * a / b, budget=Composite(), grad=_addcdiv_grad, attrs=({"value": 1.0}, {"value": -0.5}),
           golden=((1.0, 6.0, 3.0, 3.0),), aten=("addcdiv",))
def addcdiv(x, a, b, *, value=1):
    """x + value a / b."""
    return x + value * a / b


def _lerp_grad(o, dy, inputs, result, attrs):
    x, end, weight = inputs
    one = o.full((), 1.0, dtype=x.dtype)
    parts = (o.mul(dy, o.sub(one, weight)), x), (o.mul(dy, weight), end), (o.mul(dy, o.sub(end, x)), weight)
    return tuple(unbroadcast(o, t, i.shape) for t, i in parts)


@pointwise(lambda x, end, weight: np.where(np.abs(weight) < 0.5, x + weight * (end - x), end - (end - x) * (1 - weight)), budget=Composite(), grad=_lerp_grad, draws=("normal", "normal", "unit"),
           golden=((1.0, 3.0, 0.25, 1.5), (1.0, 3.0, 1.0, 3.0)), aten=("lerp.Tensor", "lerp.Scalar"), paddle=("lerp",))
def lerp(x, end, weight):
    """x + weight (end - x), exact at weight 0 and 1."""
    step = end - x
    return m.where(m.abs(weight) < 0.5, x + weight * step, end - step * (1.0 - weight))


# ---- comparisons and logic: the result is bool -----------------------------------------------------------------------
def _comparison(reference: Callable, onnx: tuple[str, ...], paddle: str) -> Callable[[Callable], Callable]:
    def define(fn: Callable) -> Callable:
        names: dict[str, Any] = {"aten": (f"{fn.__name__}.Tensor", f"{fn.__name__}.Scalar"), "paddle": (paddle,), **({"onnx": onnx} if onnx else {})}
        return pointwise(reference, dtypes=ANY, budget=Exact(), draws=("int", "int"), **names)(fn)

    return define


@_comparison(np.equal, ("Equal",), "equal")
def eq(x, y):
    """x == y, a bool; false where either is NaN."""
    return x == y


@_comparison(np.not_equal, (), "not_equal")
def ne(x, y):
    """x != y, a bool; true where either is NaN."""
    return x != y


@_comparison(np.less, ("Less",), "less_than")
def lt(x, y):
    """x < y, a bool."""
    return x < y


@_comparison(np.less_equal, ("LessOrEqual",), "less_equal")
def le(x, y):
    """x <= y, a bool."""
    return x <= y


@_comparison(np.greater, ("Greater",), "greater_than")
def gt(x, y):
    """x > y, a bool."""
    return x > y


@_comparison(np.greater_equal, ("GreaterOrEqual",), "greater_equal")
def ge(x, y):
    """x >= y, a bool."""
    return x >= y


@pointwise(np.logical_and, dtypes=ANY, budget=Exact(), aten=("logical_and",), onnx=("And",), paddle=("logical_and",))
def logical_and(x, y):
    """Whether both are nonzero (NaN is), a bool."""
    return (x != 0) & (y != 0)


@pointwise(np.logical_or, dtypes=ANY, budget=Exact(), aten=("logical_or",), onnx=("Or",), paddle=("logical_or",))
def logical_or(x, y):
    """Whether either is nonzero (NaN is), a bool."""
    return (x != 0) | (y != 0)


@pointwise(np.logical_not, dtypes=ANY, budget=Exact(), aten=("logical_not",), onnx=("Not",), paddle=("logical_not",))
def logical_not(x):
    """Whether x is zero, a bool."""
    return x == 0


_BITWISE = INTEGERS + BOOL


@pointwise(np.bitwise_and, dtypes=_BITWISE, budget=Exact(), aten=("bitwise_and.Tensor", "bitwise_and.Scalar"), onnx=("BitwiseAnd",),
           paddle=("bitwise_and",))
def bitwise_and(x, y):
    """x & y, bit by bit."""
    return x & y


@pointwise(np.bitwise_or, dtypes=_BITWISE, budget=Exact(), aten=("bitwise_or.Tensor", "bitwise_or.Scalar"), onnx=("BitwiseOr",),
           paddle=("bitwise_or",))
def bitwise_or(x, y):
    """x | y, bit by bit."""
    return x | y


@pointwise(np.bitwise_xor, dtypes=_BITWISE, budget=Exact(), aten=("bitwise_xor.Tensor", "bitwise_xor.Scalar"), onnx=("BitwiseXor",),
           paddle=("bitwise_xor",))
def bitwise_xor(x, y):
    """x ^ y, bit by bit."""
    return x ^ y


@pointwise(np.bitwise_not, dtypes=_BITWISE, budget=Exact(), aten=("bitwise_not",), onnx=("BitwiseNot",), paddle=("bitwise_not",))
def bitwise_not(x):
    """~x, bit by bit; on bools it is "not"."""
    return ~x


# ---- cast: any dtype to any ------------------------------------------------------------------------------------------
CASTABLE = tuple(d for d in ALL if d.kind != "c")


def _cast_infer(x: Spec, *, dtype: DType) -> Spec:
    need_dtype("cast", "x", x, CASTABLE)
    if dtype not in CASTABLE:
        raise DTypeError(f"cast: dtype is {dtype}; accepts {', '.join(map(str, CASTABLE))}; complex has no kernel")
    return Spec(x.shape, dtype)


def _double(x):
    """As float64; what a 64-bit integer loses there stays in the last bit (round to odd), so that fewer bits are rounded once."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize < 8:
        return x.astype(np.float64)
    size = np.where(x < 0, (~x).astype(np.uint64) + np.uint64(1), x.astype(np.uint64)) if x.dtype.kind == "i" else x
    odd = (size >> np.uint64(11) | ((size & np.uint64(2047)) != 0)).astype(np.float64) * 2048.0
    return np.where(x < 0, -1.0, 1.0) * np.where(size >> np.uint64(53) == 0, size.astype(np.float64), odd)


def _cast(x, *, dtype):
    if dtype.is_floating:
        return x.astype(np.float64) if dtype.name == "float64" else _double(x)
    if dtype.kind == "b":
        return x != 0
    if x.dtype.kind != "f":
        return x.astype(dtype.numpy)
    wide = 2.0 ** (63 if dtype.itemsize == 8 or dtype.name == "uint32" else 31)
    whole = np.trunc(x)
    if dtype.name == "uint64":
        upper = np.where(whole < 2 * wide, whole - wide, 0.0).astype(np.uint64) + np.uint64(2**63)
        return np.where(whole >= wide, upper, np.where(whole >= -wide, whole, -wide).astype(np.int64).astype(np.uint64))
    return np.where((whole >= -wide) & (whole < wide), whole, -wide).astype(np.int64).astype(dtype.numpy)


def cast_formula(x):
    return x


def _middles(name: str) -> tuple[float, ...]:
    """The middles of all neighbours of an 8-bit float, with an infinitely small step to either side, and its overflow."""
    kind = dtype(name).numpy
    codes = np.arange(0x80, dtype=np.uint8).view(kind).astype(np.float64)
    codes = codes[np.isfinite(codes)]
    top = codes[-1] + (codes[-1] - codes[-2]) / 2  # halfway to what would come next
    middles = np.concatenate([(codes[1:] + codes[:-1]) / 2, [top, codes[-1] * 2, 3e38]])
    x = np.concatenate([codes, middles, np.nextafter(middles.astype(np.float32), np.float32(0)), np.nextafter(middles.astype(np.float32), np.float32(3.4e38))])
    return tuple((*x, *-x, math.inf, -math.inf, math.nan))


def _codes(name: str) -> tuple[float, ...]:
    """Every value of an 8-bit float."""
    return tuple(np.arange(0x100, dtype=np.uint32).astype(np.uint8).view(dtype(name).numpy).astype(np.float64))


# values -> the dtypes they are converted to: past the ranges of integers and beside their ends, NaN with every bit set (a
# rounding carries over into 0), the middle of two narrow numbers with less than float32 sees to either side, the odd sum of a
# large integer; every 8-bit float
_WHOLES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_BEYOND = tuple(s * v for v in (0.0, 0.99, 127.5, 128.0, 255.0, 256.0, 32768.0, 65535.0, 2147483520.0, 2.0**31, 3e9, 4294967040.0, 2.0**32, 5e9,
                                2.0**53, 9.2e18, 2.0**63, 1.5e19, 2.0**64, 3e38, math.inf) for s in (1, -1)) + (math.nan,)
_BEYOND_64 = (*_BEYOND, 2147483647.0, 2147483647.5, -2147483648.5, -2147483649.0, 4294967295.0, 9223372036854774784.0, -9223372036854774784.0, 1e300)
_NANS = tuple(struct.unpack("<3d", struct.pack("<3Q", 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x7FF8000020000000)))
_TWICE = tuple(s * 2.0**e * (1 + step + tiny) for step in (2.0**-11, 3 * 2.0**-11, 2.0**-8, 3 * 2.0**-8) for tiny in (2.0**-40, -(2.0**-40), 0.0)
               for e in (0, 5, -15) for s in (1, -1))
_LARGE = tuple(s * (v + d) for v in (2**30 + 2**21, 2**30 + 2**22, 2**31 - 2**22) for d in (0, 1, -1) for s in (1, -1))
_LARGER = (*_LARGE, *(s * (v + d) for v in (2**40 + 2**31, 2**62 + 2**53, 2**62 + 2**54, 2**61 + 2**37 + 2**8) for d in (0, 1, -1) for s in (1, -1)),
           -(2**63), 2**63 - 1)
_UNSIGNED = tuple(v + d for v in (2**63 + 2**54, 2**63 + 2**55, 2**63 + 2**39, 2**54 + 2**1) for d in (0, 1, -1)) + (2**64 - 1, 2**63)
_EDGES: tuple[tuple[str, str, tuple[float, ...], tuple[str, ...]], ...] = (
    ("beyond", "float32", _BEYOND, (*_WHOLES, "bool")), ("double_beyond", "float64", _BEYOND_64, _WHOLES),
    ("half_beyond", "bfloat16", _BEYOND, ("int32", "uint8", "int64")),
    ("nans", "float32", _NANS, ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "bool")),
    ("double_nans", "float64", _NANS, ("float32", "bfloat16")),
    ("twice", "float64", _TWICE, ("float16", "bfloat16", "float32", "float8_e5m2")), ("large", "int32", _LARGE, ("float16", "bfloat16", "float32")),
    ("larger", "int64", _LARGER, ("float16", "bfloat16", "float32", "float64")), ("unsigned", "uint64", _UNSIGNED, ("bfloat16", "float32", "float64")),
    *((f"middles_{to[7:]}", "float32", _middles(to), (to,)) for to in ("float8_e4m3fn", "float8_e5m2")),
    *((f"codes_{source[7:]}", source, _codes(source), ("float32", "float16", "int8", source))
      for source in ("float8_e4m3fn", "float8_e5m2")))


def _cast_samples() -> list[Sample]:
    out = [Sample(f"{name}_to_{to}", (In(shape, "wide" if BY_NAME[to].is_floating or to == "bool" else "positive"),), {"dtype": dtype(to)})
           for to in ("float32", "float16", "bfloat16", "float64", "int32", "int64", "int8", "uint8", "bool")
           for name, shape in (("past_tile", (1025,)), ("lanes", (3, 17)), ("scalar", ()), ("empty", (0, 5)))]
    out.append(Sample("transposed_to_float32", (In((65, 130), layout="transposed"),), {"dtype": dtype("float32")}))
    out += [Sample(f"{name}_to_{to}", (In((len(values),), dtype=source, values=values),), {"dtype": dtype(to)})
            for name, source, values, targets in _EDGES for to in targets]
    return out + [Sample(f"square_4096_to_{to}", (In((4096, 4096)),), {"dtype": dtype(to)}, "", "full", ("full",))
                  for to in ("float32", "float16", "bfloat16")]


op("cast(Tensor x, *, dtype dtype) -> Tensor", family="pointwise", dtypes=ANY, infer=_cast_infer, rule="same", reference=_quiet(_cast),
   doc="x converted to dtype.  Floats round to nearest even, once; to bool: x != 0; integers wrap.  Float to integer truncates; "
       "NaN and values outside int32 (int64 for int64, uint32, uint64) become that type's least value, then wrap, as C on x86-64 does.",
   budget=Faithful(k=0.5, k_low=0.5, ties=True), samples=_cast_samples(), formula=cast_formula,
   bad=(Bad("to_complex", (In((3,)),), DTypeError, ("complex64", "cast"), {"dtype": dtype("complex64")}),),
   cost=lambda item, x, *, dtype: Cost(flops=x.size, bytes=x.size * (x.dtype.itemsize + dtype.itemsize)),
   grad=lambda o, dy, inputs, y, attrs: (o.cast(dy, dtype=inputs[0].dtype) if inputs[0].dtype.is_floating else None,),
   names={"aten": ("_to_copy",), "onnx": ("Cast",), "paddle": ("cast",)})
