"""The standard's operators: importing this fills OPS, one record an operator.  Not here: any way of computing them."""
from __future__ import annotations

from . import (
    attention,
    batch_norm,
    conv,
    gated,
    index,
    loss,
    matmul,
    norm,
    optim,
    pointwise,
    pointwise_activation,
    pointwise_elementary,
    pointwise_grad,
    pool,
    random,
    reduce,
    shape,
    softmax,
    view,
)
from .record import OPS

__all__ = [
    "OPS",
    "attention",
    "batch_norm",
    "conv",
    "gated",
    "index",
    "loss",
    "matmul",
    "norm",
    "optim",
    "pointwise",
    "pointwise_activation",
    "pointwise_elementary",
    "pointwise_grad",
    "pool",
    "random",
    "reduce",
    "shape",
    "softmax",
    "view",
]
