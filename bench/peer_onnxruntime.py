"""onnxruntime as a peer: a model of one node, built in memory, inputs and outputs bound once to the row's own arrays."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .peers import Peer, Refusal, Work
from .timer import Call

__all__ = ["OnnxRuntime"]

OPSET, IR_VERSION = 23, 11
_MICROSOFT = "com.microsoft"

# operators that are one node with the record's inputs in order and no attributes
_PLAIN = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "neg": "Neg", "abs": "Abs", "sign": "Sign",
          "maximum": "Max", "minimum": "Min", "relu": "Relu", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal",
          "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf", "where": "Where", "eq": "Equal", "lt": "Less",
          "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr",
          "bitwise_xor": "BitwiseXor", "bitwise_not": "BitwiseNot", "matmul": "MatMul", "mm": "MatMul", "bmm": "MatMul"}
_REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}


class _Graph:
    """Nodes and constants of one small model.

    constant inputs are stored in the model, as weights are in a deployed one: the runtime may then pack them once.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, list[str], list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any) -> _Graph:
        self.nodes.append((kind, list(inputs), list(outputs), domain, {k: v for k, v in attrs.items() if v is not None}))
        return self

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name


def _build(work: Work, i: list[str], o: list[str], g: _Graph) -> bool:
    """Adds the operator's nodes; False where ONNX or the runtime has none for it."""
    case = work.case
    name, a, x = case.record.name, case.attrs, work.arrays
    shape = case.inputs[0].shape if case.inputs and hasattr(case.inputs[0], "shape") else ()
    if name in ("add", "sub") and a["alpha"] != 1:
        return False
    if name in _PLAIN:
        g.node(_PLAIN[name], i, o)
    elif name in ("logical_and", "logical_or", "logical_not"):
        if case.inputs[0].dtype.kind != "b":
            return False
        g.node({"logical_and": "And", "logical_or": "Or", "logical_not": "Not"}[name], i, o)
    elif name == "rsqrt":
        g.node("Sqrt", i, ["root"]).node("Reciprocal", ["root"], o)
    elif name == "silu":
        g.node("QuickGelu", i, o, _MICROSOFT, alpha=1.0)
    elif name == "gelu":
        g.node("Gelu", i, o, approximate=a["approximate"])
    elif name == "clamp":
        kind = case.dtype.numpy
        bounds = [g.constant(k, np.array(a[k], kind)) if a[k] is not None else "" for k in ("min", "max")]
        g.node("Clip", [i[0], *bounds], o)
    elif name == "masked_fill":
        g.node("Where", [i[1], g.constant("value", np.array(a["value"], case.dtype.numpy)), i[0]], o)
    elif name in ("softmax", "log_softmax"):
        g.node("Softmax" if name == "softmax" else "LogSoftmax", i, o, axis=a["dim"])
    elif name in _REDUCTIONS and a.get("dtype") is None:
        dims = range(len(shape)) if a["dim"] in (None, ()) else (a["dim"],) if isinstance(a["dim"], int) else a["dim"]
        g.node(_REDUCTIONS[name], [*i, g.constant("axes", np.array(list(dims), np.int64))], o, keepdims=int(a["keepdim"]))
    elif name in ("argmax", "argmin") and (a["dim"] is not None or len(shape) == 1):
        g.node("ArgMax" if name == "argmax" else "ArgMin", i, o, axis=a["dim"] or 0, keepdims=int(a["keepdim"]))
    elif name == "cumsum" and a["dtype"] is None:
        g.node("CumSum", [*i, g.constant("axis", np.array(a["dim"], np.int64))], o)
    elif name == "topk":
        g.node("TopK", [*i, g.constant("k", np.array([a["k"]], np.int64))], o, axis=a["dim"], largest=int(a["largest"]), sorted=int(a["sorted"]))
    elif name == "layer_norm" and x[1] is not None:
        g.node("LayerNormalization", [v for v in i if v], o, axis=-len(a["normalized_shape"]), epsilon=a["eps"])
    elif name == "rms_norm" and x[1] is not None:
        g.node("SimplifiedLayerNormalization", i, o, axis=-x[1].ndim, epsilon=a["eps"], stash_type=1)
    elif name == "linear":
        g.constant(i[1], np.ascontiguousarray(x[1].T))
        g.node("MatMul", i[:2], o if x[2] is None else ["product"])
        if x[2] is not None:
            g.node("Add", ["product", i[2]], o)
    elif name == "addmm":
        g.node("Gemm", [i[1], i[2], i[0]], o, alpha=a["alpha"], beta=a["beta"])
    elif name == "embedding":
        g.node("Gather", i, o, axis=0)
    elif name == "index_select":
        g.node("Gather", i, o, axis=a["dim"])
    elif name == "gather":
        g.node("GatherElements", i, o, axis=a["dim"])
    elif name == "scatter_add":
        g.node("ScatterElements", i, o, axis=a["dim"], reduction="add")
    elif name == "copy":
        g.node("Identity", i, o)
    elif name == "cat":
        g.node("Concat", i, o, axis=a["dim"])
    elif name in ("tril", "triu"):
        g.node("Trilu", [*i, g.constant("k", np.array(a["diagonal"], np.int64))], o, upper=int(name == "triu"))
    elif name == "cast":
        g.node("Cast", i, o, to=_onnx_type(case.outputs[0].dtype.numpy))
    elif name == "nll_loss":
        g.node("NegativeLogLikelihoodLoss", [v for v in i if v], o, reduction=a["reduction"], ignore_index=a["ignore_index"])
    elif name == "cross_entropy" and a["label_smoothing"] == 0:
        g.node("SoftmaxCrossEntropyLoss", [v for v in i if v], o, reduction=a["reduction"], ignore_index=a["ignore_index"])
    elif name == "scaled_dot_product_attention" and not a["enable_gqa"]:
        g.node("Attention", [v for v in i if v], o, is_causal=int(a["is_causal"]), scale=a["scale"])
    else:
        return False
    return True


def _onnx_type(kind: np.dtype) -> int:
    from onnx import TensorProto, helper

    return TensorProto.BFLOAT16 if kind.name == "bfloat16" else helper.np_dtype_to_tensor_dtype(kind)


class OnnxRuntime(Peer):
    name = "onnxruntime"
    note = "weights of linear are constants of the model, packed once by the runtime"

    def __init__(self) -> None:
        import onnx  # noqa: F401  missing: the caller reports it
        import onnxruntime

        self._ort = onnxruntime
        self.version = onnxruntime.__version__
        self._threads = 1
        onnxruntime.set_default_logger_severity(4)  # a kernel it lacks is an exception already

    def set_threads(self, n: int) -> None:
        self._threads = n

    def calls(self, work: Work) -> list[Call]:
        flat = [a for group in work.arrays for a in (group if isinstance(group, tuple) else (group,))]
        names = [f"x{k}" if a is not None else "" for k, a in enumerate(flat)]
        graph, given, inner = _Graph(), dict[str, np.ndarray](), list(names)
        for k, (n, a) in enumerate(zip(names, flat)):
            if a is None:
                continue
            if a.flags.c_contiguous:
                given[n] = a
            else:  # tensors there have no strides: a transposed view is a node
                given[n] = a.swapaxes(-1, -2)
                inner[k] = f"{n}t"
                graph.node("Transpose", [n], [inner[k]], perm=[*range(a.ndim - 2), a.ndim - 1, a.ndim - 2])
        outs = work.outs()
        results = [f"y{k}" for k in range(len(outs))]
        if not _build(work, inner, results, graph):
            raise Refusal("no such operator")
        for n in graph.constants:
            given.pop(n, None)
        run = self._session(graph, given, dict(zip(results, outs)))
        return [Call(run, result=lambda _: outs if len(outs) > 1 else outs[0])]

    def _session(self, graph: _Graph, given: dict[str, np.ndarray], outs: dict[str, np.ndarray]) -> Callable[[], Any]:
        from onnx import helper, numpy_helper

        ort = self._ort
        values = [[helper.make_tensor_value_info(n, _onnx_type(a.dtype), a.shape) for n, a in group.items()] for group in (given, outs)]
        nodes = [helper.make_node(kind, i, o, domain=domain, **attrs) for kind, i, o, domain, attrs in graph.nodes]
        model = helper.make_model(
            helper.make_graph(nodes, "row", values[0], values[1], [numpy_helper.from_array(v, n) for n, v in graph.constants.items()]),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)], ir_version=IR_VERSION)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 4
        # its threads spin within a run, as by default, and stop after it: the next contestant needs the cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own C++ module: any of them means no such peer row
            raise Refusal(_reason(error)) from error
        binding = session.io_binding()
        kept = []
        for bind, group in ((binding.bind_ortvalue_input, given), (binding.bind_ortvalue_output, outs)):
            for n, a in group.items():
                value = self._value(a)
                kept.append(value)
                bind(n, value)
        run = session.run_with_iobinding

        def once() -> None:
            run(binding)

        try:
            once()
        except Exception as error:  # as above: the session refuses a model by exceptions it does not export
            raise Refusal(_reason(error)) from error
        once.__dict__["kept"] = kept  # the binding holds no reference to the memory
        return once

    def _value(self, a: np.ndarray) -> Any:
        make = self._ort.OrtValue
        if a.dtype.name == "bfloat16":
            return make.ortvalue_from_numpy_with_onnx_type(a.view(np.uint16), _onnx_type(a.dtype))
        return make.ortvalue_from_numpy(a)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]
