"""Time several ways to do the same thing, interleaved in one process: A B C A B C ...

Whatever else the machine does then hits all of them alike, and the minimum over rounds is each one's undisturbed time.
Not here: what is called (peers.py, runner.py), what a time means (roofline.py).
"""
from __future__ import annotations

import functools
import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Timing", "estimate", "interleave", "loop", "overhead"]

LEAST = 3  # rounds everyone gets
FAR = 6.0  # who is this many times slower than the fastest, and whose one sample takes SHARE of the budget, leaves after LEAST rounds
SHARE = 1 / 8
SAMPLE_NS = 1_000_000  # short calls are repeated until one sample takes this long: clock resolution and jitter below 0.1 %


@dataclass(frozen=True)
class Call:
    """``fn(*args, **kwargs)``, written out so that the timed loop contains nothing else.

    Attributes:
        result: makes NumPy-readable results of what ``fn`` returned, for checks.
        allocates: it makes its result anew each time, because it cannot write into memory it is given.
        sync: waits for the device; None on the host.
        spelling: how a user would write it, for reports.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: Callable[[Any], Any] | None = None
    allocates: bool = False
    sync: Callable[[], None] | None = None
    spelling: str = ""

    def __call__(self) -> Any:
        return self.fn(*self.args, **self.kwargs)


def loop(call: Call | None) -> Callable[[int], float]:
    """``loop(call)(n)``: nanoseconds that n calls take, garbage collection off, loop included; None: the empty loop."""
    if call is None:
        return timeit.Timer(timer=time.perf_counter_ns).timeit
    names = [f"a{i}" for i in range(len(call.args))]
    setup = "".join([f"{n} = args[{i}]\n" for i, n in enumerate(names)] + [f"{k}_ = kwargs[{k!r}]\n" for k in call.kwargs])
    spelled = ", ".join(names + [f"{k}={k}_" for k in call.kwargs])
    timer = timeit.Timer(f"f({spelled})", setup + "f = fn", time.perf_counter_ns,
                         {"fn": call.fn, "args": call.args, "kwargs": call.kwargs})
    if call.sync is None:
        return timer.timeit
    sync = call.sync

    def timed(n: int) -> float:
        sync()
        start = time.perf_counter_ns()
        timer.timeit(n)
        sync()
        return time.perf_counter_ns() - start

    return timed


@functools.lru_cache(maxsize=1)
def overhead() -> float:
    """Nanoseconds one turn of the empty loop takes."""
    empty = loop(None)
    return min(empty(100_000) for _ in range(7)) / 100_000


@dataclass
class Timing:
    """Nanoseconds per call, one number a round; ``inner`` calls stand behind each."""

    inner: int
    samples: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over the median: how noisy the run was."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median if self.median else 0.0


def estimate(timed: Callable[[int], float], enough_ns: int = SAMPLE_NS // 10) -> float:
    """Roughly what one call takes in ns; warms it up meanwhile: code, caches, pages, thread pools."""
    n, elapsed = 1, timed(1)
    if elapsed < 50_000_000:  # the first call may have compiled or faulted pages in
        elapsed = timed(1)
    while elapsed < enough_ns and n < 1 << 20:
        n *= 4
        elapsed = timed(n)
    return elapsed / n


def interleave(calls: Mapping[str, Call], budget_s: float = 0.5, *, least: int = LEAST, sample_ns: int = SAMPLE_NS,
               settle_s: float = 0.0) -> dict[str, Timing]:
    """Time every call in turn, round after round, loop overhead taken off.

    Everyone runs ``least`` rounds, then until ``budget_s`` more seconds have passed; those leave after ``least`` rounds
    who are slower than FAR times the fastest and would use up the budget of the others.

    Args:
        calls: contestants by name; the order is the order within a round.
        sample_ns: how long one sample should last; calls shorter than that are repeated inside a sample.
        settle_s: untimed pause before every sample, so that another library's spinning threads have gone to sleep.
    """
    timed = {name: loop(call) for name, call in calls.items()}
    found = {name: Timing(max(1, round(sample_ns / max(estimate(t), 1.0)))) for name, t in timed.items()}
    empty = overhead()

    def turn(names: list[str]) -> None:
        for name in names:
            if settle_s:
                time.sleep(settle_s)
            n = found[name].inner
            found[name].samples.append(max(timed[name](n) / n - empty, 0.0))

    names = list(calls)
    for _ in range(least):
        turn(names)
    fastest = min((t.best for t in found.values()), default=0.0)
    long = SHARE * budget_s * 1e9
    names = [n for n in names if found[n].best <= FAR * fastest or found[n].best * found[n].inner <= long]
    end = time.perf_counter() + budget_s
    while names and time.perf_counter() < end:
        turn(names)
    return found
