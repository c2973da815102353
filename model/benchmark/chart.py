"""Small charts as SVG text: bars, and lines with marks. Knows numbers and labels, nothing of benchmarks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

#: A panel, and the line above all panels.
_WIDTH, _HEIGHT, _TITLE = 520, 300, 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 56
_COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280")
_INK, _GRID, _FAILED = "#2d3748", "#e2e8f0", "#c53030"
_STYLE = 'font-family="system-ui, sans-serif" font-size="11"'


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar for each label."""

    title: str
    unit: str
    labels: Sequence[str]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Lines:
    """Several series over one pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    #: A horizontal line with a label.
    limit: tuple[float, str] | None = None
    #: Places on the x axis to mark as failed.
    failed: Sequence[float] = field(default=())
    #: Mark each point, as measurements; without, it is a curve.
    marks: bool = True


def svg(title: str, panels: Sequence[Bars | Lines]) -> str:
    """The panels side by side under a title."""
    width, height = _WIDTH * len(panels), _HEIGHT + _TITLE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {_STYLE} fill="{_INK}">',
        _tag("rect", width=width, height=height, fill="white"),
        _text(16, 22, title, size=14, weight="bold"),
    ]
    for number, panel in enumerate(panels):
        drawn = _bars(panel) if isinstance(panel, Bars) else _lines(panel)
        parts += [f'<g transform="translate({number * _WIDTH} {_TITLE})">', *drawn, "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _bars(chart: Bars) -> list[str]:
    axis = _Axis.over([0.0, *chart.values], _HEIGHT - _BOTTOM, _TOP)
    parts = [_text(_LEFT, 20, f"{chart.title} ({chart.unit})", weight="bold"), *_horizontal_grid(axis)]
    slot = (_WIDTH - _LEFT - _RIGHT) / max(1, len(chart.values))
    width = min(60.0, slot * 0.6)
    for number, (label, value) in enumerate(zip(chart.labels, chart.values, strict=True)):
        middle, top = _LEFT + slot * (number + 0.5), axis.at(value)
        parts += [
            _tag("rect", x=middle - width / 2, y=top, width=width, height=axis.at(0) - top, fill=_COLOURS[0]),
            _text(middle, top - 4, _number(value), anchor="middle"),
            _text(middle, _HEIGHT - _BOTTOM + 16, label, anchor="middle"),
        ]
    return parts


def _lines(chart: Lines) -> list[str]:
    points = [point for series in chart.series for point in series.points]
    limits = [chart.limit[0]] if chart.limit else []
    x_axis = _Axis.over([0.0, *(x for x, _ in points), *chart.failed], _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis.over([0.0, *(y for _, y in points), *limits], _HEIGHT - _BOTTOM, _TOP)
    parts = [_text(_LEFT, 20, chart.title, weight="bold"), *_horizontal_grid(y_axis)]
    parts += [
        _text(x_axis.at(tick), _HEIGHT - _BOTTOM + 16, _number(tick), anchor="middle")
        for tick in x_axis.ticks
    ]
    parts += [
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 34, chart.x_label, anchor="middle"),
        f'<g transform="rotate(-90 16 {(_TOP + _HEIGHT - _BOTTOM) / 2})">',
        _text(16, (_TOP + _HEIGHT - _BOTTOM) / 2, chart.y_label, anchor="middle"),
        "</g>",
    ]
    if chart.limit:
        y = y_axis.at(chart.limit[0])
        parts += [
            _tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, stroke=_FAILED, stroke_dasharray="5 4"),
            _text(_WIDTH - _RIGHT, y - 4, chart.limit[1], anchor="end", fill=_FAILED),
        ]
    for number, series in enumerate(chart.series):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in sorted(series.points)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(_tag("polyline", points=joined, fill="none", stroke=colour, stroke_width=1.5))
        if chart.marks:
            parts += [_tag("circle", cx=x, cy=y, r=3.5, fill=colour) for x, y in places]
        parts.append(_text(_LEFT + 130 * number, 36, f"— {series.name}", fill=colour))
    for x in chart.failed:
        parts.append(_text(x_axis.at(x), _HEIGHT - _BOTTOM - 4, "✕", anchor="middle", fill=_FAILED))
    return parts


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values to places in the picture, from 0 up."""

    top: float
    ticks: Sequence[float]
    first: float
    last: float

    @classmethod
    def over(cls, values: Iterable[float], first: float, last: float) -> "_Axis":
        """An axis that ends at a round number: four to ten steps of 1, 2 or 5 times a power of ten."""
        largest = max(values) or 1.0
        power = 10 ** math.floor(math.log10(largest))
        step = next(size * power for size in (0.1, 0.2, 0.5, 1.0) if largest <= 10 * size * power)
        count = math.ceil(largest / step - 1e-9)
        if count > 6:
            step, count = 2 * step, math.ceil(count / 2)
        return cls(step * count, [step * number for number in range(count + 1)], first, last)

    def at(self, value: float) -> float:
        """Where the value stands."""
        return self.first + (self.last - self.first) * value / self.top


def _horizontal_grid(axis: _Axis) -> list[str]:
    parts = []
    for tick in axis.ticks:
        y = axis.at(tick)
        parts += [
            _tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, stroke=_GRID),
            _text(_LEFT - 6, y + 4, _number(tick), anchor="end"),
        ]
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 11,
    weight: str = "normal",
    fill: str = _INK,
) -> str:
    start = _tag("text", x=x, y=y, text_anchor=anchor, font_size=size, font_weight=weight, fill=fill)
    return f"{start.removesuffix('/>')}>{escape(text)}</text>"


def _tag(name: str, **attributes: float | str) -> str:
    """An element without content; places are given to a tenth."""
    written = (
        f'{key.replace("_", "-")}="{round(value, 1) if isinstance(value, float) else value}"'
        for key, value in attributes.items()
    )
    return f"<{name} {' '.join(written)}/>"


def _number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
