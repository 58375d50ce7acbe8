"""Loops, branches, jumps, trees: how many programs go through one piece of code at once.

A branch runs both sides, each with the programs of the other side masked out; a loop runs until its last program is
done.  Values of programs that stood aside are kept.  No IR here: registers and ``Code`` objects only.
"""
from __future__ import annotations

import numpy as np

__all__ = ["TERMINATORS", "branch", "flow_graph", "for_loop", "reduce_tree", "scan_tree", "while_loop"]

TERMINATORS = ("scf.yield", "scf.condition", "tt.return", "tt.reduce.return", "tt.scan.return", "cf.br", "cf.cond_br")


def _merge(on: np.ndarray, new: np.ndarray, old: np.ndarray | None) -> np.ndarray:
    """new where a program is on, old elsewhere.  on: (programs,)"""
    if old is None or new is old:
        return new
    return np.where(on.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _live_values(slab, x: np.ndarray) -> np.ndarray:
    """The scalar's values in the programs alive.  # (programs alive,) or (1,)"""
    return x if x.shape[0] == 1 or slab.live is None else x[slab.live]


def for_loop(bounds: list[int], inits: list[int], body, outs: list[int], dtype: np.dtype, unsigned: bool):
    """scf.for: registers of (low, high, step) and of the carried values; the body's arguments start with the index."""
    low_reg, high_reg, step_reg = bounds
    index_arg, carried_args = body.args[0], body.args[1:]
    wide = np.dtype(f"u{dtype.itemsize}") if unsigned else dtype

    def step(slab, regs):
        current = [regs[k] for k in inits]
        bound = [regs[k].view(wide) for k in (low_reg, high_reg, step_reg)]
        seen = [_live_values(slab, b) for b in bound]
        if all((b == b[0]).all() for b in seen):
            for i in range(*(int(b[0]) for b in seen)):
                regs[index_arg] = np.full(1, i, wide).view(dtype)
                for k, value in zip(carried_args, current):
                    regs[k] = value
                current = body.run(slab, regs)
        else:
            current = ragged(slab, regs, bound, current)
        for k, value in zip(outs, current):
            regs[k] = value

    def ragged(slab, regs, bound, current):
        outer = slab.live
        low, high, stride = (np.broadcast_to(b.astype(np.int64), (slab.count,)) for b in bound)
        i = low
        while True:
            on = i < high if outer is None else (i < high) & outer
            if not on.any():
                break
            everyone = bool(on.all())
            slab.live = None if everyone else on
            regs[index_arg] = i.astype(dtype)
            for k, value in zip(carried_args, current):
                regs[k] = value
            new = body.run(slab, regs)
            current = new if everyone else [_merge(on, n, c) for n, c in zip(new, current)]
            i = i + stride
        slab.live = outer
        return current

    return step


def while_loop(inits: list[int], head, body, outs: list[int]):
    """scf.while: head ends in scf.condition(flag) values, body in scf.yield."""

    def step(slab, regs):
        outer = slab.live
        current = [regs[k] for k in inits]
        result: list[np.ndarray | None] = [None] * len(outs)
        while True:
            for k, value in zip(head.args, current):
                regs[k] = value
            flag, *values = head.run(slab, regs)
            on = slab.live
            result = values if on is None else [_merge(on, v, r) for v, r in zip(values, result)]
            flags = np.broadcast_to(flag, (slab.count,))
            going = flags if on is None else flags & on
            if not going.any():
                break
            slab.live = None if going.all() else going
            for k, value in zip(body.args, values):
                regs[k] = value
            current = body.run(slab, regs)
        slab.live = outer
        for k, value in zip(outs, result):
            regs[k] = value

    return step


def branch(flag_reg: int, yes, no, outs: list[int]):
    """scf.if; a missing else is an empty Code."""

    def step(slab, regs):
        outer = slab.live
        flag = regs[flag_reg]
        seen = _live_values(slab, flag)
        if seen.all():
            result = yes.run(slab, regs)
        elif not seen.any():
            result = no.run(slab, regs)
        else:
            slab.live = flag if outer is None else flag & outer
            first = yes.run(slab, regs)
            slab.live = ~flag if outer is None else ~flag & outer
            second = no.run(slab, regs)
            slab.live = outer
            result = [_merge(flag, a, b) for a, b in zip(first, second)]
        for k, value in zip(outs, result):
            regs[k] = value

    return step


def flow_graph(codes: list, slab, regs: list) -> list:
    """Blocks that jump (an early return): the lowest-numbered block with programs in it runs next.

    Triton prints blocks in an order in which every join follows what leads to it, so programs meet again at joins.
    """
    outer = slab.live
    at = np.zeros(slab.count, np.int64)
    done = len(codes)
    if outer is not None:
        at[~outer] = done
    result: list = []
    while True:
        number = int(at.min())
        if number == done:
            break
        on = at == number
        everyone = bool(on.all())
        slab.live = None if everyone else on
        code = codes[number]
        kept = [] if everyone else [(k, regs[k]) for k in code.defined if k not in code.args]
        values = code.run(slab, regs)
        for k, old in kept:
            regs[k] = _merge(on, regs[k], old)
        if code.end == "tt.return":
            result = values if not result else [_merge(on, v, r) for v, r in zip(values, result)]
            at[on] = done
            continue
        if code.end == "cf.br":
            moves = [(on, *code.targets[0])]
        else:
            flag = np.broadcast_to(values[0], (slab.count,))
            moves = [(on & flag, *code.targets[0]), (on & ~flag, *code.targets[1])]
        passed = [[regs[k] for k in names] for _, _, names in moves]
        for (going, target, _), arguments in zip(moves, passed):
            if not going.any():
                continue
            at[going] = target
            for k, value in zip(codes[target].args, arguments):
                regs[k] = _merge(going, value, regs[k])
    slab.live = outer
    return result


# ---- trees over an axis ----------------------------------------------------------------------------------------------------
def _cut(values: list[np.ndarray], axis: int, part: slice) -> list[np.ndarray]:
    where = (slice(None),) * axis + (part,)
    return [v[where] for v in values]


def reduce_tree(combine, values: list[np.ndarray], axis: int) -> list[np.ndarray]:
    """Combine the halves of an axis (a power of two) until one element is left; the axis disappears."""
    n = values[0].shape[axis]
    while n > 1:
        half = n // 2
        values = combine(_cut(values, axis, slice(0, half)), _cut(values, axis, slice(half, n)))
        n = half
    return [v.reshape(*v.shape[:axis], *v.shape[axis + 1 :]) for v in values]


def scan_tree(combine, values: list[np.ndarray], axis: int) -> list[np.ndarray]:
    """Inclusive scan in 2 log2(n) rounds and 2n combinations, order kept: the operation need not commute."""
    n = values[0].shape[axis]
    if n == 1:
        return list(values)
    left, right = _cut(values, axis, slice(0, n, 2)), _cut(values, axis, slice(1, n, 2))
    odd = scan_tree(combine, combine(left, right), axis)
    even = combine(_cut(odd, axis, slice(0, n // 2 - 1)), _cut(left, axis, slice(1, n // 2))) if n > 2 else None
    found = []
    for k, value in enumerate(values):
        programs = odd[k].shape[0]
        out = np.empty((programs, *value.shape[1:]), odd[k].dtype)
        evens = _cut([out], axis, slice(0, n, 2))[0]
        _cut([evens], axis, slice(0, 1))[0][...] = _cut(left, axis, slice(0, 1))[k]
        if even is not None:
            _cut([evens], axis, slice(1, n // 2))[0][...] = even[k]
        _cut([out], axis, slice(1, n, 2))[0][...] = odd[k]
        found.append(out)
    return found
