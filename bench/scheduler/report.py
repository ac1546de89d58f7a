"""Markdown sections and the plot. Owns their form only."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from xml.sax.saxutils import escape

RESULTS = Path(__file__).with_name("results.md")
PLOT = Path(__file__).parents[2] / "docs" / "img" / "fairness.svg"
COLOURS = ("#9aa5b1", "#6b9ac4", "#e0a458", "#c8553d", "#7fb685", "#2a7f62")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def put_section(name: str, text: str) -> None:
    """Replace one section of the results file, or append it."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    old = RESULTS.read_text() if RESULTS.exists() else "# The scheduler, measured\n\n"
    section = f"{begin}{text.strip()}\n{end}"
    if begin in old:
        old = old[: old.index(begin)] + section + old[old.index(end) + len(end) :]
    else:
        old += f"\n{section}"
    RESULTS.write_text(old)


def bars(title: str, unit: str, groups: Sequence[str], series: dict[str, Sequence[float]], bar: float) -> str:
    """Grouped bars on a logarithmic axis as SVG; `bar` is drawn as the line to stay below."""
    width, height, left, top = 920, 420, 64, 70
    plot = (width - left - 16, height - top - 60)
    low, high = -1.0, max(1.0, log10(max(max(values) for values in series.values())) + 0.1)

    def y(value: float) -> float:
        return top + plot[1] * (1 - (log10(max(value, 10**low)) - low) / (high - low))

    step = plot[0] / len(groups)
    thick = step * 0.84 / len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="16" font-weight="600" fill="#1b1f24">{escape(title)}</text>',
    ]
    for n, name in enumerate(series):
        x = left + n * 140
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{COLOURS[n]}"/>')
        parts.append(f'<text x="{x + 17}" y="46" fill="#1b1f24">{escape(name)}</text>')
    for power in range(int(low), int(high) + 1):
        line = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{width - 16}" y1="{line:.1f}" y2="{line:.1f}" stroke="#dde2e7"/>')
        parts.append(f'<text x="{left - 8}" y="{line + 4:.1f}" text-anchor="end" fill="#57606a">{10.0**power:g}</text>')
    for g, group in enumerate(groups):
        for n, values in enumerate(series.values()):
            x, tip = left + g * step + step * 0.08 + n * thick, y(values[g])
            parts.append(
                f'<rect x="{x:.1f}" y="{tip:.1f}" width="{thick - 1:.1f}" height="{top + plot[1] - tip:.1f}" '
                f'fill="{COLOURS[n]}"><title>{escape(list(series)[n])}, {escape(group)}: {values[g]:.2f}</title></rect>'
            )
        parts.append(
            f'<text x="{left + (g + 0.5) * step:.1f}" y="{top + plot[1] + 18}" text-anchor="middle" '
            f'fill="#1b1f24">{escape(group)}</text>'
        )
    line = y(bar)
    parts.append(
        f'<line x1="{left}" x2="{width - 16}" y1="{line:.1f}" y2="{line:.1f}" stroke="#1b1f24" stroke-dasharray="5 4"/>'
    )
    parts.append(f'<text x="16" y="{height - 12}" fill="#57606a">{escape(unit)}</text>')
    return "\n".join([*parts, "</svg>", ""])
