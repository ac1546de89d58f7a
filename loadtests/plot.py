"""Line charts as SVG text: small multiples over one time axis. Must not know where the numbers are from."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 860, 130, 74, 20, 34, 46
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")


class Panel:
    """One chart: a title and its named series, all with as many values as there are times."""

    def __init__(self, title: str, series: dict[str, Sequence[float]]) -> None:
        self.title = title
        self.series = series

    @property
    def top(self) -> float:
        """The end of the value axis: the first round number above all values."""
        highest = max((max(values, default=0.0) for values in self.series.values()), default=0.0)
        step = 10.0 ** (len(str(int(highest))) - 1)
        return next(step * n for n in (1, 2, 3, 4, 5, 6, 8, 10, 20) if step * n > highest)


def chart(title: str, times: Sequence[float], panels: Sequence[Panel], mark: float | None = None) -> str:
    """The SVG. `times` are seconds from the start; `mark` draws a vertical line there (end of warm-up)."""
    tall = TOP + len(panels) * (HEIGHT + GAP) + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{tall}" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>'
    )
    parts = [head]
    for index, panel in enumerate(panels):
        parts.append(_panel(panel, times, TOP + 20 + index * (HEIGHT + GAP), mark))
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, times: Sequence[float], y: float, mark: float | None) -> str:
    last = max(times[-1] if times else 0.0, 1.0)
    across = WIDTH - LEFT - RIGHT
    parts = [f'<text x="{LEFT}" y="{y - 6}" fill="#111">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 1.0):
        level = y + HEIGHT * (1 - share)
        parts.append(f'<path d="M{LEFT} {level}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{level + 4}" text-anchor="end" fill="#555">{panel.top * share:g}</text>')
    parts.extend(
        f'<text x="{LEFT + across * share}" y="{y + HEIGHT + 14}" text-anchor="middle" fill="#555">'
        f"{last * share / 60:.3g} min</text>"
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    if mark is not None:
        parts.append(
            f'<path d="M{LEFT + across * mark / last:.1f} {y}V{y + HEIGHT}" stroke="#999" stroke-dasharray="4"/>'
        )
    for colour, values in zip(COLOURS, panel.series.values(), strict=False):
        points = [
            f"{LEFT + across * t / last:.1f} {y + HEIGHT * (1 - v / panel.top):.1f}"
            for t, v in zip(times, values, strict=True)
        ]
        parts.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    names = list(panel.series)
    for place, name in enumerate(names):
        x = WIDTH - RIGHT - 130 * (len(names) - place)
        parts.append(f'<text x="{x + 130}" y="{y - 6}" text-anchor="end" fill="{COLOURS[place]}">{escape(name)}</text>')
    return "\n".join(parts)
