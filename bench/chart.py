"""Line charts as SVG, by hand: readable on a light and on a dark page, no library, no script.

A sheet is a list of panels; a panel has series of (x, y) points, and logarithmic axes where it
says so. A band from least to greatest may lie behind a line.
"""

import html
import math
from dataclasses import dataclass, field

WIDTH, HEIGHT, GAP = 380, 250, 16
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 44, 38

STYLE = """
  svg { font: 11px system-ui, "Segoe UI", "Noto Sans", sans-serif; background: #fff; color: #1f2328 }
  text { fill: currentColor } .title { font-size: 13px; font-weight: 600 } .soft { fill: #59636e }
  .grid { stroke: #d8dee4; stroke-width: 1 } .axis { stroke: #818b98 }
  .s0 { --c: #0969da } .s1 { --c: #bc4c00 } .s2 { --c: #1a7f37 } .s3 { --c: #8250df }
  .line { fill: none; stroke: var(--c); stroke-width: 2 } .dot, .key { fill: var(--c) }
  .band { fill: var(--c); opacity: .16 }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; color: #e6edf3 } .soft { fill: #9198a1 }
    .grid { stroke: #2d333b } .axis { stroke: #6e7681 }
    .s0 { --c: #58a6ff } .s1 { --c: #f0883e } .s2 { --c: #3fb950 } .s3 { --c: #bc8cff }
  }
"""


@dataclass
class Series:
    name: str
    points: list
    band: list = field(default_factory=list)  # (x, least, greatest)


@dataclass
class Panel:
    title: str
    x: str
    y: str
    series: list
    log_x: bool = False
    log_y: bool = False
    dots: bool = True


def number(value):
    """A short notation for an axis."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:.3g}"


class Axis:
    """Where a value lies between two ends, and which values are marked."""

    def __init__(self, values, is_log, begin, end):
        self.is_log, self.begin, self.end = is_log, begin, end
        if is_log:
            # Zero has no place on a logarithmic axis; it stands a step before the least value.
            positive = [value for value in values if value > 0]
            self.zero = min(positive) / 10 if 0 in values else None
            self.low = self.zero or min(positive)
            self.high = max(positive)
            if self.high <= self.low:
                self.high = self.low * 10
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            self.marks = [10.0**decade for decade in decades]
            if len(self.marks) < 2:
                self.marks = [self.low, self.high]
        else:
            self.zero = None
            top = max(values) or 1
            step = 10 ** math.floor(math.log10(top))
            step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if top / (step * part) <= 6)
            self.low, self.high = 0, step * math.ceil(top / step - 1e-9)
            self.marks = [step * mark for mark in range(round(self.high / step) + 1)]

    def at(self, value):
        if self.is_log:
            value = self.low if value <= 0 else value
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def label(self, mark):
        return "0" if self.zero is not None and math.isclose(mark, self.zero) else number(mark)


def panel_svg(panel, left, top):
    points = [point for series in panel.series for point in series.points]
    bands = [edge for series in panel.series for edge in series.band]
    x = Axis([point[0] for point in points], panel.log_x, LEFT, WIDTH - RIGHT)
    y = Axis([point[1] for point in points] + [edge[2] for edge in bands], panel.log_y, HEIGHT - BOTTOM, TOP)
    out = [f'<g transform="translate({left} {top})">']
    out.append(f'<text class="title" x="{LEFT}" y="16">{html.escape(panel.title)}</text>')
    for mark in y.marks:
        at = y.at(mark)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y.label(mark)}</text>')
    for mark in x.marks:
        at = x.at(mark)
        out.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x.label(mark)}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    out.append(f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(panel.x)}</text>')
    out.append(f'<text class="soft" x="4" y="{TOP - 12}">{html.escape(panel.y)}</text>')
    key = WIDTH - RIGHT
    for place, series in reversed(list(enumerate(panel.series))):
        colour = f"s{place % 4}"
        if series.band:
            edge = [f"{x.at(at):.1f},{y.at(high):.1f}" for at, _, high in series.band]
            edge += [f"{x.at(at):.1f},{y.at(low):.1f}" for at, low, _ in reversed(series.band)]
            out.append(f'<polygon class="band {colour}" points="{" ".join(edge)}"/>')
        line = " ".join(f"{x.at(at):.1f},{y.at(value):.1f}" for at, value in series.points)
        out.append(f'<polyline class="line {colour}" points="{line}"/>')
        if panel.dots:
            out += [f'<circle class="dot {colour}" cx="{x.at(at):.1f}" cy="{y.at(value):.1f}" r="3"/>'
                    for at, value in series.points]
        if len(panel.series) > 1:
            out.append(f'<text x="{key}" y="{TOP - 12}" text-anchor="end">{html.escape(series.name)}</text>')
            key -= 6.2 * len(series.name) + 6
            out.append(f'<circle class="key {colour}" cx="{key}" cy="{TOP - 16}" r="4"/>')
            key -= 12
    out.append("</g>")
    return "\n".join(out)


def sheet(title, panels, columns=2):
    """The whole file."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH + (columns + 1) * GAP, rows * (HEIGHT + GAP) + GAP + 26
    body = "\n".join(
        panel_svg(panel, GAP + place % columns * (WIDTH + GAP), 38 + place // columns * (HEIGHT + GAP))
        for place, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(title)}">\n<style>{STYLE}</style>\n'
        f'<text class="soft" x="{GAP + 4}" y="24">{html.escape(title)}</text>\n{body}\n</svg>\n'
    )
