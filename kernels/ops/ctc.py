"""Connectionist temporal classification: what it is.  How: kernels/cpu/ctc.c, kernels/triton/ctc.py.

Graves et al., ICML 2006, in the logarithm.  States are the labels with blanks between and around them.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Conditioned
from .infer import need, need_dtype, same_dtype
from .record import Bad, Cost, In, Sample, Spec, op

_INT64 = BY_NAME["int64"]
_DTYPES = (BY_NAME["float32"], BY_NAME["float64"])  # those of aten; in 16 bits the likelihoods of long sequences have no digits left


def _check(name: str, log_probs: Spec, targets: Spec, input_lengths: Spec, target_lengths: Spec, blank: int) -> tuple[int, int, int, int]:
    """(T, N, C, S)."""
    need_dtype(name, "log_probs", log_probs, _DTYPES)
    for what, spec in (("targets", targets), ("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if spec.dtype is not _INT64:
            raise DTypeError(f"{name}: {what} has dtype {spec.dtype}; needs int64; cast it first")
    if log_probs.ndim != 3 or targets.ndim != 2 or targets.shape[0] != log_probs.shape[1]:
        raise ShapeError(f"{name}: log_probs is {log_probs.shape} and targets {targets.shape}; needs (T, N, C) and (N, S); pad and stack the targets")
    for what, spec in (("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if spec.shape != log_probs.shape[1:2]:
            raise ShapeError(f"{name}: {what} is {spec.shape}; needs {log_probs.shape[1:2]}, one length a sequence")
    need(0 <= blank < log_probs.shape[2], f"{name}: blank is {blank}; needs 0 <= blank < {log_probs.shape[2]}")
    steps, batch, classes = log_probs.shape
    return steps, batch, classes, targets.shape[1]


def _infer(log_probs: Spec, targets: Spec, input_lengths: Spec, target_lengths: Spec, *, blank: int) -> tuple[Spec, Spec]:
    steps, batch, _, labels = _check("ctc_loss_forward", log_probs, targets, input_lengths, target_lengths, blank)
    return Spec((batch,), log_probs.dtype), Spec((batch, steps, 2 * labels + 1), log_probs.dtype)


def _infer_backward(dy: Spec, log_probs: Spec, targets: Spec, input_lengths: Spec, target_lengths: Spec, neg_log_likelihood: Spec, log_alpha: Spec, *,
                    blank: int, zero_infinity: bool) -> Spec:
    name = "ctc_loss_backward"
    steps, batch, _, labels = _check(name, log_probs, targets, input_lengths, target_lengths, blank)
    same_dtype(name, log_probs, dy, neg_log_likelihood, log_alpha)
    for what, spec, shape in (("dy", dy, (batch,)), ("neg_log_likelihood", neg_log_likelihood, (batch,)),
                              ("log_alpha", log_alpha, (batch, steps, 2 * labels + 1))):
        if spec.shape != shape:
            raise ShapeError(f"{name}: {what} is {spec.shape}; needs {shape}")
    return log_probs


def _lengths(name, log_probs, targets, input_lengths, target_lengths):
    """(steps, labels) of each sequence, checked."""
    found = []
    for n, (steps, labels) in enumerate(zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)):
        if not (0 <= steps <= log_probs.shape[0] and 0 <= labels <= targets.shape[1]):
            raise IndexOutOfBounds(f"{name}: sequence {n} has input length {steps} and target length {labels}; needs at most {log_probs.shape[0]} "
                                   f"and {targets.shape[1]}")
        row = targets[n, :labels]
        bad = (row < 0) | (row >= log_probs.shape[2])
        if bad.any():
            s = int(bad.argmax())
            raise IndexOutOfBounds(f"{name}: target {row[s]} at position ({n}, {s}) is outside 0 <= target < {log_probs.shape[2]}")
        found.append((steps, labels))
    return found


def _states(row, blank):
    label = np.full(2 * len(row) + 1, blank, np.int64)
    label[1::2] = row
    skip = np.zeros(len(label), bool)
    skip[3::2] = label[3::2] != label[1:-2:2]
    return label, skip


def _logsum(*terms):
    terms = np.stack(terms)
    top = terms.max(axis=0)
    return np.log(np.exp(terms - np.where(np.isinf(top), 0.0, top)).sum(axis=0)) + np.where(np.isinf(top), 0.0, top)


def _recursion(emit, skip):
    """log alpha (steps, states) from the states' log-probabilities (steps, states)."""
    steps, states = emit.shape
    nothing = np.full(2, -np.inf)
    found = []
    for t in range(steps):
        if t == 0:
            now = np.where(np.arange(states) < 2, emit[0], -np.inf)
        else:
            wide = np.concatenate([nothing, found[-1]])
            now = emit[t] + _logsum(wide[2:], wide[1:-1], np.where(skip, wide[:-2], -np.inf))
        found.append(now)
    return np.stack(found)


def _forward(log_probs, targets, input_lengths, target_lengths, *, blank):
    steps, batch, _ = log_probs.shape
    nll = [np.float64(np.inf)] * batch
    alpha = np.full((batch, steps, 2 * targets.shape[1] + 1), -np.inf, log_probs.dtype)
    with np.errstate(all="ignore"):
        for n, (count, labels) in enumerate(_lengths("ctc_loss_forward", log_probs, targets, input_lengths, target_lengths)):
            label, skip = _states(targets[n, :labels], blank)
            if count == 0:
                nll[n] = np.float64(np.inf if labels else 0.0)
                continue
            found = _recursion(log_probs[:count, n][:, label], skip)
            alpha[n, :count, :len(label)] = found
            nll[n] = -(_logsum(found[-1, -1], found[-1, -2]) if labels else found[-1, -1])
        return np.array(nll, dtype=alpha.dtype), alpha


def _backward(dy, log_probs, targets, input_lengths, target_lengths, neg_log_likelihood, log_alpha, *, blank, zero_infinity):
    grad = np.zeros(log_probs.shape)
    with np.errstate(all="ignore"):
        for n, (count, labels) in enumerate(_lengths("ctc_loss_backward", log_probs, targets, input_lengths, target_lengths)):
            label, skip = _states(targets[n, :labels], blank)
            nll = neg_log_likelihood[n]
            if count == 0 or (zero_infinity and nll == np.inf):
                continue
            if not nll < np.inf:
                grad[:count, n] = np.nan
                continue
            emit = log_probs[:count, n][:, label]
            # going back is going forward on both reversed; a skip belongs to the state it leads from
            back = np.concatenate([skip[2:], [False] * min(2, len(skip))])[:len(skip)]
            beta = _recursion(emit[::-1, ::-1], back[::-1])[::-1, ::-1]
            chance = np.exp(log_alpha[n, :count, :len(label)] + beta - emit + nll)
            g = np.exp(log_probs[:count, n])
            for k, c in enumerate(label):
                g[:, c] = g[:, c] - chance[:, k]
            grad[:count, n] = g * dy[n]
    return grad


def _terms(log_probs: Spec, *_: Any, **__: Any) -> int:
    return 3 * log_probs.shape[0]


def _terms_backward(dy: Spec, log_probs: Spec, *_: Any, **__: Any) -> int:
    return 6 * log_probs.shape[0]


def _cost(item: int, log_probs: Spec, targets: Spec, *_: Any, **__: Any) -> Cost:
    states = log_probs.shape[0] * log_probs.shape[1] * (2 * targets.shape[1] + 1)
    return Cost(flops=60 * states, bytes=item * 2 * states + 8 * targets.size)


def _cost_backward(item: int, dy: Spec, log_probs: Spec, targets: Spec, *_: Any, **__: Any) -> Cost:
    states = log_probs.shape[0] * log_probs.shape[1] * (2 * targets.shape[1] + 1)
    return Cost(flops=90 * states, bytes=item * (2 * log_probs.size + states) + 8 * targets.size)


def _grad(o, dy, inputs, outputs, attrs):
    """ctc_loss_backward is the gradient before log_softmax, as aten's: its exp(log_probs) does not belong here."""
    log_probs, targets, input_lengths, target_lengths = inputs
    steps, batch, _ = log_probs.shape
    g = o.ctc_loss_backward(dy, log_probs, targets, input_lengths, target_lengths, *outputs, attrs["blank"], False)
    inside = o.lt(o.arange(0, steps, 1, dtype=_INT64).reshape((steps, 1, 1)), input_lengths.reshape((1, batch, 1)))
    plain = o.sub(g, o.mul(o.exp(log_probs), dy.reshape((1, batch, 1))))
    return o.where(inside, plain, o.full((), 0.0, dtype=log_probs.dtype)), None, None, None


# name, T, C, targets, input lengths, target lengths, blank: repeated labels, empty targets and inputs, blanks elsewhere, too short inputs
_CASES: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 2, ((1,),), (1,), (1,), 0), ("repeated", 7, 4, ((1, 1, 2), (3, 3, 3)), (7, 6), (3, 3), 0),
    ("lengths", 11, 5, ((1, 2, 3, 4), (4, 4, 0, 0), (2, 0, 0, 0)), (11, 7, 5), (4, 2, 1), 0), ("last_blank", 9, 5, ((0, 1, 0), (3, 2, 1)), (9, 8), (3, 3), 4),
    ("no_labels", 5, 3, ((1, 2), (0, 0)), (5, 4), (2, 0), 0), ("no_columns", 3, 3, ((), ()), (3, 2), (0, 0), 1),
    ("tight", 5, 4, ((1, 2, 3, 1, 2),), (5,), (5,), 0), ("long", 97, 13, (tuple(1 + i % 12 for i in range(23)),) * 2, (97, 90), (23, 20), 0))


def _inputs(steps: int, classes: int, targets: tuple, lengths: tuple, labels: tuple, dtype: str | None = None) -> tuple[In, ...]:
    flat = tuple(c for row in targets for c in row)
    return (In((steps, len(targets), classes), "logp", dtype), In((len(targets), len(targets[0])), "index", "int64", 1, flat or None),
            In((len(lengths),), dtype="int64", values=lengths), In((len(labels),), dtype="int64", values=labels))


def _samples(backward: bool) -> list[Sample]:
    def one(name: str, steps: int, classes: int, targets: tuple, lengths: tuple, labels: tuple, blank: int, dtype: str | None = None, **more: Any) -> Sample:
        given = _inputs(steps, classes, targets, lengths, labels, dtype)
        attrs: dict[str, Any] = {"blank": blank}
        if not backward:
            return Sample(name, given, attrs, **more)
        batch, states = len(targets), 2 * len(targets[0]) + 1
        # likelihoods and alphas of these sizes keep every chance finite; they need not belong together
        rest = (In((batch,), "positive", dtype), In((batch, steps, states), "logp", dtype))
        return Sample(name, (In((batch,), dtype=dtype), *given, *rest), {**attrs, "zero_infinity": False}, **more)

    found = [one(*case) for case in _CASES]
    speech = tuple(tuple(1 + (7 * i + n) % 28 for i in range(60)) for n in range(16))
    found.append(one("deepspeech", 300, 29, speech, (300,) * 16, (60,) * 16, 0, model="DeepSpeech 2 characters, 6 s of speech, batch 16", level="training", bench=("full",)))
    return found


def _bad(backward: bool) -> tuple[Bad, ...]:
    attrs = {"blank": 0, **({"zero_infinity": False} if backward else {})}
    before = (In((2,)),) if backward else ()
    after = (In((2,)), In((2, 5, 7))) if backward else ()
    good = _inputs(5, 4, ((1, 2, 3), (3, 2, 1)), (5, 4), (3, 2))

    def case(name: str, at: int, given: In, error: type[Exception], words: tuple[str, ...], **more: Any) -> Bad:
        return Bad(name, (*before, *(given if i == at else g for i, g in enumerate(good)), *after), error, words, {**attrs, **more})

    return (case("target_9_of_4", 1, In((2, 3), dtype="int64", values=(1, 9, 3, 3, 2, 1)), IndexOutOfBounds, ("target 9", "(0, 1)", "4")),
            case("input_length", 2, In((2,), dtype="int64", values=(5, 6)), IndexOutOfBounds, ("sequence 1", "input length 6", "5")),
            case("target_length", 3, In((2,), dtype="int64", values=(4, 2)), IndexOutOfBounds, ("sequence 0", "target length 4", "3")),
            case("concatenated", 1, In((6,), "index", "int64", 4), ShapeError, ("(5, 2, 4)", "(6,)", "(N, S)")),
            case("lengths_dtype", 2, In((2,)), DTypeError, ("input_lengths", "float32", "int64")),
            case("blank_4_of_4", 9, In(()), ArgumentError, ("blank is 4",), blank=4))


_FAMILY: dict[str, Any] = {"family": "ctc", "dtypes": _DTYPES}

op("ctc_loss_forward(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank=0) -> (Tensor neg_log_likelihood, Tensor "
   "log_alpha)", **_FAMILY, infer=_infer, reference=_forward, budget=Conditioned(k=4, terms=_terms), cost=_cost, bad=_bad(False), grad=_grad,
   samples=[*_samples(False), Sample("too_short", _inputs(3, 4, ((1, 1, 2), (1, 2, 3)), (3, 0), (3, 2), "float32"), {"blank": 0})],
   doc="-log of the probability that log_probs (T, N, C), of which the first input_lengths count, spell the first target_lengths labels of targets "
       "(N, S): infinity where they cannot.  log_alpha (N, T, 2 S + 1): log-probabilities of the labels up to a state at a step, -inf outside the "
       "lengths.", names={"aten": ("_ctc_loss.Tensor",), "paddle": ("warpctc",)})

op("ctc_loss_backward(Tensor dy, Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, Tensor neg_log_likelihood, Tensor "
   "log_alpha, int blank, bool zero_infinity=false) -> Tensor", **_FAMILY, infer=_infer_backward, reference=_backward,
   budget=Conditioned(k=4, terms=_terms_backward), cost=_cost_backward, bad=_bad(True),
   samples=[*_samples(True), *(Sample(f"infinite_{zero}", (
       In((2,), dtype="float32"), *_inputs(3, 4, ((1, 1, 2), (1, 2, 3)), (3, 3), (3, 2), "float32"), In((2,), dtype="float32", values=(float("inf"), 2.5)),
       In((2, 3, 7), "logp", "float32")), {"blank": 0, "zero_infinity": zero}) for zero in (False, True))],
   doc="dy (N,) times exp(log_probs) minus the chance that a path of the labels is in a class at a step, 0 past the input lengths: the gradient of what "
       "log_probs are the log_softmax of.  A sequence of infinite loss gives NaN, with zero_infinity 0.",
   names={"aten": ("_ctc_loss_backward.Tensor",), "paddle": ("warpctc_grad",)})
