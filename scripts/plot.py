#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
"""Draws what `bmc bench --json` printed.

    scripts/plot.py bench.json > bench.svg

One chart of the throughput by case and side, and one of the latency for each
load: a bar to the median, a line to the 99th percentile. Reads stdin when no
file is named.
"""

import json
import math
import sys
from xml.sax.saxutils import escape

COLORS = {
    "without": "#8a8a8a",
    "native": "#1b6ca8",
    "tc": "#4fa3d1",
    "generic": "#a9d3ea",
    "reflector": "#e0a030",
    "sockets": "#5b8c5a",
    "sockets-native": "#2f5d2e",
    "by-client": "#a3c9a2",
    "by-cpu": "#c9b8e0",
}
BAR, GAP, LEFT, TOP, HEIGHT = 9, 16, 70, 54, 220


def number(value):
    """1234567 as 1.23M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


class Chart:
    """Groups of bars, a group for each case."""

    def __init__(self, title, top, most, least=None):
        """A linear scale from zero, or a logarithmic one from `least`."""
        self.parts, self.bottom = [], top + HEIGHT
        self.most, self.least = most, least
        self.text(LEFT, top - 12, title, "start", 13)

    def y(self, value):
        if self.least is None:
            share = value / self.most
        else:
            value = max(value, self.least)
            share = math.log(value / self.least) / math.log(self.most / self.least)
        return self.bottom - share * HEIGHT

    def text(self, x, y, text, anchor="middle", size=10):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-size="{size}">{escape(text)}</text>'
        )

    def line(self, x1, y1, x2, y2, color):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'
        )

    def axis(self, width):
        if self.least is None:
            step = 10 ** math.floor(math.log10(self.most))
            if self.most / step < 4:
                step /= 2
            ticks = [i * step for i in range(int(self.most / step) + 1)]
        else:
            first, last = math.log10(self.least), math.log10(self.most)
            ticks = [10**i for i in range(math.ceil(first), math.floor(last) + 1)]
        for tick in ticks:
            self.line(LEFT, self.y(tick), width, self.y(tick), "#dddddd")
            self.text(LEFT - 6, self.y(tick) + 3, number(tick), "end")

    def bar(self, x, value, color, hint, whisker=None):
        top = self.y(value)
        self.parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{BAR - 1}" '
            f'height="{max(self.bottom - top, 0.5):.1f}" fill="{color}">'
            f"<title>{escape(hint)}</title></rect>"
        )
        if whisker is not None:
            middle = x + (BAR - 1) / 2
            self.line(middle, top, middle, self.y(whisker), "#333333")


def rows(case, load):
    return [row for row in case["sides"] if row["load"] == load]


def draw(report):
    cases = [case for case in report["cases"] if case["sides"]]
    if not cases:
        sys.exit("plot: nothing was measured")
    everything = [row for case in cases for row in case["sides"]]
    sides = [side for side in COLORS if any(row["side"] == side for row in everything)]
    loads = [load for load in ("saturated", "paced") if any(rows(case, load) for case in cases)]
    most = max(len(rows(case, load)) for case in cases for load in loads)
    group = max(most * BAR + GAP, 72)
    width = LEFT + group * len(cases) + 10
    charts, top = [], TOP + 30

    def add(title, load, value, scale, whisker=None):
        nonlocal top
        chart = Chart(title, top, *scale)
        chart.axis(width - 10)
        for i, case in enumerate(cases):
            x = LEFT + i * group + GAP / 2
            chart.text(x + most * BAR / 2, chart.bottom + 14, case["name"])
            for place, row in enumerate(rows(case, load)):
                hint = f'{case["name"]}, {row["side"]}, {load}: {number(row["rate"])}/s, '
                hint += ", ".join(f"{k} {number(v)} us" for k, v in row["latency_us"].items())
                hint += f', hits {row["hit_ratio"]:.1%}, {row["lost"]} of {row["requests"]} lost'
                chart.bar(
                    x + place * BAR,
                    value(row),
                    COLORS[row["side"]],
                    hint,
                    whisker and whisker(row),
                )
        charts.extend(chart.parts)
        top = chart.bottom + 66

    fastest = max(row["rate"] for row in everything) * 1.05
    title = "Requests answered a second, saturated"
    add(title, "saturated", lambda row: row["rate"], (fastest or 1,))
    slowest = max(row["latency_us"]["p99"] for row in everything) * 1.2
    for load in loads:
        title = f"Latency in microseconds, {load}: median, and line to the 99th percentile"
        p50, p99 = (lambda row, p=p: row["latency_us"][p] for p in ("p50", "p99"))
        add(title, load, p50, (max(slowest, 10), 1), p99)

    machine = report["machine"]
    head = Chart("", TOP, 1)
    head.text(10, 20, "bmc {bmc}, memcached {memcached}, Linux {kernel}, {cpus} x {cpu}"
              .format(**machine), "start", 12)
    for i, side in enumerate(sides):
        x = LEFT + i * 100
        head.parts.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{COLORS[side]}"/>')
        head.text(x + 15, 41, side, "start")
    size = f'width="{max(width, 600)}" height="{top - 30}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>', *head.parts, *charts, "</svg>",
    ])


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") if len(sys.argv) > 1 else sys.stdin as source:
        print(draw(json.load(source)))
