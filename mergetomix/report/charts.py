"""Charts as inline SVG: text that a reader of the page's source, or of a screen, can follow.

Colours come from the page's style sheet, so that they follow a dark or a light background. All text
that comes from a recipe is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

WIDTH = 720
"""Units across a chart; it scales with the page."""
LABELS = 270
"""Units for the labels on the left of a chart with lines."""
LINE = 26
NUM_TICKS = 5


@dataclass(frozen=True)
class Ruler:
    """Maps values to places along an axis."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> Ruler:
        """Returns a scale that holds all finite values, with a little room on both sides."""
        known = [each for each in values if math.isfinite(each)] or [0.0]
        low, high = min(known), max(known)
        room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """Returns the place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Returns round values along the axis.

        >>> Ruler(0.0, 0.1, 0, 100).ticks()
        [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
        """
        step = (self.high - self.low) / NUM_TICKS
        size = 10.0 ** math.floor(math.log10(step))
        step = next(each * size for each in (1, 2, 5, 10) if each * size >= step * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Dot:
    """A value with the ends of its interval, and what it is called."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; `low` and `high` are of y."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Axes:
    """What a chart says of itself and of its axes."""

    title: str
    x: str
    y: str = ""
    line: Sequence[tuple[float, float]] = field(default=())
    dashes: Sequence[tuple[float, float]] = field(default=())
    band: Sequence[tuple[float, float, float]] = field(default=())


def dots(rows: Sequence[Dot], axes: Axes) -> str:
    """Returns a chart of a line for each value, with its interval; zero is marked."""
    ends = [each for row in rows for each in (row.value, row.low, row.high) if each is not None]
    scale = Ruler.over([0.0, *ends], LABELS, WIDTH - 20)
    bottom = LINE * len(rows) + 10
    parts = [_x_axis(scale, 0, bottom, axes.x)]
    parts.append(_line(scale(0), 0, scale(0), bottom, "zero"))
    for place, row in enumerate(rows):
        y = LINE * place + LINE / 2 + 5
        parts.append(_text(LABELS - 10, y + 4, _short(row.name, 36), "end"))
        if row.low is not None and row.high is not None:
            parts.append(_line(scale(row.low), y, scale(row.high), y, f"interval {row.mark}"))
        parts.append(_circle(scale(row.value), y, _said(row), row.mark))
    return _svg(axes.title, bottom + 45, parts)


def scatter(points: Sequence[Point], axes: Axes) -> str:
    """Returns points on two axes, with a line, a dashed line and a band if there are any."""
    height, left, bottom = 380, 70, 330
    drawn = [*axes.line, *axes.dashes]
    x = Ruler.over([*(each.x for each in points), *(at for at, _ in drawn)], left, WIDTH - 20)
    ends = [v for each in points for v in (each.y, each.low, each.high) if v is not None]
    ends += [value for _, value in drawn] + [v for _, a, b in axes.band for v in (a, b)]
    y = Ruler.over(ends, bottom, 10)
    parts = [_x_axis(x, 10, bottom, axes.x), _y_axis(y, left, WIDTH - 20, axes.y)]
    if axes.band:
        upper = [(at, high) for at, _, high in axes.band]
        lower = [(at, low) for at, low, _ in reversed(axes.band)]
        parts.append(f'<polygon class="band" points="{_places([*upper, *lower], x, y)}"/>')
    for kind, line in (("equal", axes.dashes), ("fit", axes.line)):
        if line:
            parts.append(f'<polyline class="{kind}" points="{_places(line, x, y)}"/>')
    for each in points:
        if each.low is not None and each.high is not None:
            ends_y = y(each.low), y(each.high)
            parts.append(_line(x(each.x), ends_y[0], x(each.x), ends_y[1], f"interval {each.mark}"))
        said = f"{each.name}: {each.x:.4g}, {each.y:.4g}"
        parts.append(_circle(x(each.x), y(each.y), said, each.mark))
    return _svg(axes.title, height, parts)


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], axes: Axes) -> str:
    """Returns a curve for each name, which a list below the chart tells by its colour."""
    height, left, bottom = 340, 70, 290
    every = [point for curve in curves.values() for point in curve]
    x = Ruler.over((at for at, _ in every), left, WIDTH - 20)
    y = Ruler.over((value for _, value in every), bottom, 10)
    parts = [_x_axis(x, 10, bottom, axes.x), _y_axis(y, left, WIDTH - 20, axes.y)]
    for number, (name, curve) in enumerate(curves.items()):
        title = f"<title>{html.escape(name)}</title>"
        points = _places([each for each in curve if math.isfinite(each[1])], x, y)
        parts.append(f'<polyline class="curve c{number % 8}" points="{points}">{title}</polyline>')
    return _svg(axes.title, height, parts)


def heat(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Dot]]) -> str:
    """Returns a table whose cells are shaded by their values, from below zero to above it."""
    largest = max((abs(each.value) for row in cells for each in row), default=0.0) or 1.0
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = []
    for name, row in zip(rows, cells, strict=True):
        shown = "".join(
            f'<td class="{"good" if each.value > 0 else "bad"}"'
            f' style="--share:{abs(each.value) / largest:.2f}" title="{html.escape(_said(each))}">'
            f"{each.value:+.4f}</td>"
            for each in row
        )
        body.append(f'<tr><th scope="row">{html.escape(name)}</th>{shown}</tr>')
    caption = "<caption>What each dataset adds to each target</caption>"
    first = '<th scope="col">dataset</th>'
    inner = f"{caption}<thead><tr>{first}{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<table class="heat sortable">{inner}</table>'


def _said(each: Dot) -> str:
    ends = "" if each.low is None else f", 90% interval {each.low:+.4f} to {each.high:+.4f}"
    return f"{each.name}: {each.value:+.4f}{ends}"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    label = html.escape(title)
    inner = "".join(parts)
    return (
        f"<figure><figcaption>{label}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{inner}</svg>'
        "</figure>"
    )


def _places(points: Sequence[tuple[float, float]], x: Ruler, y: Ruler) -> str:
    return " ".join(f"{x(at)},{y(value)}" for at, value in points)


def _x_axis(scale: Ruler, top: float, bottom: float, label: str) -> str:
    parts = []
    for tick in scale.ticks():
        parts.append(_line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(_text(scale(tick), bottom + 16, f"{tick:g}", "middle"))
    middle = (scale.start + scale.end) / 2
    return "".join([*parts, _text(middle, bottom + 36, label, "middle")])


def _y_axis(scale: Ruler, left: float, right: float, label: str) -> str:
    parts = []
    for tick in scale.ticks():
        parts.append(_line(left, scale(tick), right, scale(tick), "grid"))
        parts.append(_text(left - 6, scale(tick) + 4, f"{tick:g}", "end"))
    middle = (scale.start + scale.end) / 2
    turned = f'<text transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">'
    return "".join([*parts, f"{turned}{html.escape(label)}</text>"])


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind.strip()}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _circle(x: float, y: float, said: str, mark: str) -> str:
    kind = f"dot {mark}".strip()
    title = f"<title>{html.escape(said)}</title>"
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="5">{title}</circle>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
