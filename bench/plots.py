"""Rows to one SVG: for each scenario a panel of bars, CPU time per unit of every gateway, cheapest first."""

from __future__ import annotations

from html import escape

from bench.report import Row, Run, cpu, median, runs, sound, text
from bench.scenarios import SCENARIOS

WIDTH, LEFT, RIGHT, BAR, HEAD, FOOT = 860, 170, 90, 20, 34, 14
OURS, OTHERS = "#2563eb", "#9ca3af"


def panels(rows: list[Row]) -> list[tuple[str, list[tuple[str, float]]]]:
    """(title, [(gateway, microseconds of CPU a unit)]) of each turn of each run."""
    found = []
    for run in runs(rows):
        for name, spin in run.turns():
            bars = _bars(run, name, spin)
            how = "load side spins" if spin else "load side sleeps"
            title = f"{name}: {SCENARIOS[name].title} ({how}), CPU us per {SCENARIOS[name].unit}"
            if bars:
                found.append((title, bars))
    return found


def _bars(run: Run, name: str, spin: bool) -> list[tuple[str, float]]:
    values = {peer: median(cpu(row) for row in rows if sound(row)) for peer, rows in run.of(name, spin).items()}
    return sorted(((peer, value) for peer, value in values.items() if value), key=lambda bar: bar[1])


def svg(rows: list[Row]) -> str:
    """The picture. A bar longer than 25 times the shortest is cut and says its value."""
    parts, y = [], 10
    for title, bars in panels(rows):
        parts.append(f'<text x="10" y="{y + 16}" font-weight="bold">{escape(title)}</text>')
        y += HEAD
        longest = min(bars[-1][1], 25 * bars[0][1])
        for peer, value in bars:
            length = (WIDTH - LEFT - RIGHT) * min(value, longest) / longest
            colour = OURS if peer.startswith("fairgate") else OTHERS
            parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(peer)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{BAR - 6}" fill="{colour}"/>')
            cut = " (cut)" if value > longest else ""
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}">{text(value)}{cut}</text>')
            y += BAR
        y += FOOT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *parts, "</svg>"]) + "\n"
