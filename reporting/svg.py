"""Small SVG plots by hand: bars of ratios, the roofline, a history line.  Colours come from the page's ink (currentColor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["bars", "history", "roofline"]

_GOOD, _BAD, _MARKS = "#2da44e", "#cf222e", ("#0969da", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#57606a")


def _open(width: float, height: float, label: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui,sans-serif" font-size="11" fill="currentColor">'
    ]


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str = "currentColor", extra: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{extra}/>'


def bars(
    rows: Sequence[tuple[str, float]], baseline: float = 1.0, unit: str = "x", title: str = "ratios", width: int = 760
) -> str:
    """Horizontal bars from ``baseline``, on a logarithmic axis: right of it good, left of it bad.

    Args:
        rows: (label, ratio); ratios that are not positive and finite are left out.
    """
    rows = [(n, v) for n, v in rows if v > 0 and math.isfinite(v)]
    logs = [math.log2(v / baseline) for _, v in rows]
    reach = max([1.0, *map(abs, logs)]) * 1.05
    left, right, step = 210, 70, 17
    height = 30 + step * len(rows)
    middle, scale = left + (width - left - right) / 2, (width - left - right) / 2 / reach
    out = _open(width, height, title)
    for power in range(-math.floor(reach), math.floor(reach) + 1, max(1, math.ceil(reach / 5))):
        x = middle + power * scale
        out.append(_line(x, 16, x, height - 8, extra=f' stroke-opacity="{0.6 if power == 0 else 0.15}"'))
        out.append(_text(x, 11, f"{baseline * 2.0**power:g}{unit}", "middle"))
    for i, ((name, value), log) in enumerate(zip(rows, logs)):
        y, x = 22 + i * step, middle + min(log, 0) * scale
        out.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(abs(log) * scale, 0.8):.1f}" height="{step - 5}" fill="{_GOOD if log >= 0 else _BAD}">'
            f"<title>{escape(name)}: {value:.3g}{unit}</title></rect>"
        )
        out.append(_text(left - 6, y + 10, name if len(name) < 34 else name[:32] + "…", "end"))
        out.append(_text(width - right + 6, y + 10, f"{value:.3g}{unit}"))
    return "".join([*out, "</svg>"])


def roofline(
    points: Sequence[tuple[str, float, float]],
    bandwidth_gbps: float,
    peak_gflops: float,
    title: str = "roofline",
    width: int = 760,
    height: int = 420,
) -> str:
    """Attained GFLOP/s over arithmetic intensity (flop per byte), both logarithmic, under the device's two ceilings.

    Args:
        points: (label, flop per byte, GFLOP/s).
        bandwidth_gbps, peak_gflops: the measured ceilings.
    """
    points = [p for p in points if p[1] > 0 and p[2] > 0]
    ridge = peak_gflops / bandwidth_gbps
    xs = [ridge / 16, ridge * 16, *(p[1] for p in points)]
    ys = [peak_gflops * 1.3, bandwidth_gbps * min(xs), *(p[2] for p in points)]
    x0, x1 = math.floor(math.log2(min(xs))), math.ceil(math.log2(max(xs)))
    y0, y1 = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    left, bottom, top = 60, 40, 14

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log2(x) - x0) / (x1 - x0) * (width - left - 16),
            height - bottom - (math.log10(y) - y0) / (y1 - y0) * (height - bottom - top),
        )

    out = _open(width, height, title)
    for e in range(x0, x1 + 1, max(1, (x1 - x0) // 10)):
        x, _ = at(2.0**e, 10.0**y0)
        out += [
            _line(x, top, x, height - bottom, extra=' stroke-opacity="0.12"'),
            _text(x, height - bottom + 14, f"{2.0**e:g}", "middle"),
        ]
    for e in range(y0, y1 + 1):
        _, y = at(2.0**x0, 10.0**e)
        out += [
            _line(left, y, width - 16, y, extra=' stroke-opacity="0.12"'),
            _text(left - 6, y + 4, f"{10.0**e:g}", "end"),
        ]
    out += [
        _text(width / 2, height - 6, "flop / byte", "middle"),
        _text(12, height / 2, "GFLOP/s", "middle", f' transform="rotate(-90 12 {height / 2:g})"'),
    ]
    low, knee, high = (
        at(2.0**x0, min(bandwidth_gbps * 2.0**x0, peak_gflops)),
        at(ridge, peak_gflops),
        at(2.0**x1, peak_gflops),
    )
    out += [
        _line(*low, *knee, extra=' stroke-width="2"'),
        _line(*knee, *high, extra=' stroke-width="2"'),
        _text(high[0] - 4, high[1] - 6, f"{peak_gflops:.4g} GFLOP/s", "end"),
        _text(low[0] + 6, low[1] - 8, f"{bandwidth_gbps:.4g} GB/s"),
    ]
    for i, (name, x, y) in enumerate(points):
        cx, cy = at(x, y)
        out.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{_MARKS[i % len(_MARKS)]}" fill-opacity="0.8">'
            f"<title>{escape(name)}: {y:.4g} GFLOP/s at {x:.3g} flop/byte</title></circle>"
        )
        if len(points) <= 24:
            out.append(_text(cx + 6, cy + 4, name, extra=' font-size="9"'))
    return "".join([*out, "</svg>"])


def history(
    series: Sequence[tuple[str, Sequence[float]]],
    labels: Sequence[str],
    title: str = "history",
    width: int = 760,
    height: int = 260,
) -> str:
    """Lines over runs; ``labels`` name the runs, missing values are NaN."""
    values = [v for _, vs in series for v in vs if math.isfinite(v)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    span, left, bottom = (high - low) or 1.0, 60, 30
    out = _open(width, height, title)
    for k in range(5):
        y = 10 + k * (height - bottom - 10) / 4
        out += [
            _line(left, y, width - 120, y, extra=' stroke-opacity="0.12"'),
            _text(left - 6, y + 4, f"{high - k * span / 4:.3g}", "end"),
        ]
    step = (width - 120 - left) / max(len(labels) - 1, 1)
    for i, label in enumerate(labels):
        out.append(_text(left + i * step, height - 10, label, "middle"))
    for i, (name, vs) in enumerate(series):
        points = [
            (left + j * step, 10 + (high - v) / span * (height - bottom - 10))
            for j, v in enumerate(vs)
            if math.isfinite(v)
        ]
        colour = _MARKS[i % len(_MARKS)]
        out.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        if points:
            out.append(_text(points[-1][0] + 6, points[-1][1] + 4, name, extra=f' fill="{colour}"'))
    return "".join([*out, "</svg>"])
