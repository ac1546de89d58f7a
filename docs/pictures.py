"""Draws the explanatory pictures of the documentation: `python docs/pictures.py` writes docs/img/*.svg.

Plain SVG on a light card, so that they read the same on a dark page. Measured figures are not drawn here: they come
from bench/ and the scheduler's simulator.
"""

import math
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "img"
INK, MUTED, LINE, CARD = "#1f2430", "#5b6472", "#c9ced8", "#fbfbfd"
BLUE, AMBER, GREEN, RED = "#2f6fdb", "#e0872b", "#2c9a62", "#c8443c"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def text(
    x: float, y: float, words: str, size: int = 14, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: int = 6) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = MUTED, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.6"{dashed} '
        'marker-end="url(#head)"/>'
    )


def picture(name: str, title: str, width: int, height: int, parts: list[str]) -> None:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="{FONT}">'
        f"<title>{title}</title>"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 10 5 0 10z" fill="{MUTED}"/></marker></defs>'
    )
    body = "\n".join([head, box(0.5, 0.5, width - 1, height - 1, CARD, LINE, 12), *parts, "</svg>"])
    (IMAGES / f"{name}.svg").write_text(body + "\n", encoding="utf-8")


def turns() -> None:
    """Two slots, one user with a backlog, one who asks now and then: first come first served against fair turns."""
    width, cell = 46, 40
    lanes = [
        ("first come, first served", ["AAAAAAAAAAAAAAA", "AAAAAAAAAAAAALA"]),
        ("fair turns", ["AALAAALAAAALAAA", "AAAAAAAAAAAAAAA"]),
    ]
    arrivals = {2: 0, 6: 1, 11: 2}
    parts = [
        text(
            28,
            36,
            "Two slots. An agent keeps 50 requests queued (amber); Lea asks three times (blue).",
            14,
            bold=True,
        )
    ]
    for row, (name, slots) in enumerate(lanes):
        top = 66 + row * 150
        parts.append(text(28, top, name, 14, INK, bold=True))
        for index, slot in enumerate(slots):
            for step, who in enumerate(slot):
                colour = BLUE if who == "L" else AMBER
                parts.append(box(28 + step * width, top + 12 + index * (cell + 4), width - 3, cell, colour))
                if who == "L":
                    parts.append(
                        text(
                            28 + step * width + (width - 3) / 2,
                            top + 37 + index * (cell + 4),
                            "Lea",
                            13,
                            "#fff",
                            "middle",
                        )
                    )
        for step in arrivals:
            x = 28 + step * width
            parts.append(f'<path d="M{x} {top + 102} l5 9 h-10z" fill="{BLUE}"/>')
        note = (
            "Lea's first answer starts behind the whole backlog; the others are still waiting"
            if row == 0
            else "each of Lea's requests takes the next slot that frees; the agent gets every other one"
        )
        parts.append(text(28, top + 127, note, 13, MUTED))
    parts.append(
        text(
            28,
            372,
            "Illustration. Triangles: Lea's requests arrive. Time runs to the right; one cell is one answer.",
            12,
            MUTED,
        )
    )
    picture("turns", "First come, first served against fair turns", 746, 390, parts)


def usage() -> None:
    """points = -uw ln(1 + U/scale) with the defaults: each doubling of usage costs the same."""
    left, top, width, height = 70, 60, 620, 230
    most, lowest = 64.0, -45.0

    def at(rounds: float) -> tuple[float, float]:
        points = -10 * math.log(1 + rounds / 4)
        return left + width * rounds / most, top + height * points / lowest

    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(step / 4) for step in range(int(most) * 4 + 1)))
    parts = [
        text(
            28,
            34,
            "Points lost to recent usage: each doubling costs the same",
            15,
            bold=True,
        ),
        f'<polyline points="{curve}" fill="none" stroke="{AMBER}" stroke-width="3"/>',
        f'<path d="M{left} {top} v{height} h{width}" fill="none" stroke="{LINE}"/>',
    ]
    for points in (0, -10, -20, -30, -40):
        y = top + height * points / lowest
        parts += [
            f'<path d="M{left} {y:.1f} h{width}" stroke="{LINE}" stroke-dasharray="2 4"/>',
            text(left - 10, y + 5, str(points), 12, MUTED, "end"),
        ]
    for rounds in (4, 8, 16, 32, 64):
        x, y = at(rounds)
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{RED}"/>',
            text(x, top + height + 20, str(rounds), 12, MUTED, "middle"),
        ]
    parts += [
        text(left + width / 2, top + height + 42, "decayed usage, in rounds of the slots", 13, MUTED, "middle"),
        text(left + 196, top + 40, "owed wait earns 0.4 points per mean service time:", 13, GREEN),
        text(left + 196, top + 58, "10·ln 2 ≈ 7 points, one doubling, is made good by 17 of them", 13, GREEN),
    ]
    picture("usage", "Points lost to recent usage", 746, 356, parts)


def life() -> None:
    """The phases of a request, what each waits for, and the one place where all of them end."""
    rows = [
        [
            ("classify", "route table", ""),
            ("authenticate", "key → principal", "cache miss"),
            ("read", "body → ask", "body"),
            ("route", "model → pool", ""),
        ],
        [
            ("admit", "limits, budget", "shared state"),
            ("queue", "fair turn", "a slot"),
            ("forward", "request → engine", "engine"),
            ("relay", "same bytes out", "both sides"),
        ],
    ]
    parts = [text(28, 34, "One request is one object that walks through named phases", 15, bold=True)]
    for line, row in enumerate(rows):
        for column, (name, what, waits) in enumerate(row):
            x, y = 28 + column * 178, 56 + line * 118
            parts += [
                box(x, y, 150, 84, "#eef3fd", BLUE),
                text(x + 75, y + 27, name, 15, INK, "middle", True),
                text(x + 75, y + 47, what, 12, MUTED, "middle"),
            ]
            parts.append(
                text(
                    x + 75,
                    y + 69,
                    f"waits: {waits}" if waits else "cannot wait",
                    12,
                    AMBER if waits else GREEN,
                    "middle",
                )
            )
            if column < 3:
                parts.append(arrow(x + 150, y + 42, x + 176, y + 42))
    parts.append(
        '<path d="M637 140 v16 H14 v60 h12" fill="none" stroke="#5b6472" stroke-width="1.6" marker-end="url(#head)"/>'
    )
    parts += [box(28, 306, 684, 60, "#eaf7f0", GREEN), text(370, 331, "settle", 15, INK, "middle", True)]
    parts.append(
        text(
            370,
            352,
            "always, once, without waiting: slot and budget given back, one audit row, metrics",
            13,
            MUTED,
            "middle",
        )
    )
    for column in range(4):
        parts.append(arrow(103 + column * 178, 260, 103 + column * 178, 303, dash="4 4"))
    parts.append(
        text(
            28,
            390,
            "Done, refused, client gone, engine failed, timed out or a bug: every path ends in settle.",
            12,
            MUTED,
        )
    )
    picture("life", "The life of a request", 740, 408, parts)


def topology() -> None:
    """Who may reach whom in a production set-up."""
    parts = [
        text(28, 34, "Only the gateway can reach the engines", 15, bold=True),
        box(28, 66, 130, 150, "#fff", LINE),
        text(93, 100, "clients", 15, INK, "middle", True),
        text(93, 124, "OpenAI SDKs", 12, MUTED, "middle"),
        text(93, 142, "Ollama clients", 12, MUTED, "middle"),
        text(93, 160, "chat UIs, curl", 12, MUTED, "middle"),
        box(212, 52, 506, 296, "#f3f5fa", LINE, 10),
        text(230, 336, "internal network, no published ports", 12, MUTED),
        box(250, 82, 150, 118, "#eef3fd", BLUE),
        text(325, 110, "fairgate", 16, INK, "middle", True),
        text(325, 134, ":8080 API", 12, MUTED, "middle"),
        text(325, 152, ":9090 admin, metrics", 12, MUTED, "middle"),
        text(325, 178, "keys · limits · turns · audit", 11, MUTED, "middle"),
        box(540, 76, 150, 40, "#fff", LINE),
        text(615, 101, "Ollama", 14, INK, "middle"),
        box(540, 126, 150, 40, "#fff", LINE),
        text(615, 151, "vLLM", 14, INK, "middle"),
        box(540, 176, 150, 40, "#fff", LINE),
        text(615, 201, "llama.cpp", 14, INK, "middle"),
        box(250, 256, 150, 52, "#fff", LINE),
        text(325, 279, "SQLite file, or", 12, MUTED, "middle"),
        text(325, 296, "PostgreSQL + Redis", 12, INK, "middle"),
        box(540, 256, 150, 52, "#fff", LINE),
        text(615, 279, "Prometheus", 14, INK, "middle"),
        text(615, 297, "Grafana", 12, MUTED, "middle"),
        arrow(158, 141, 246, 141),
        text(185, 130, "key", 12, MUTED, "middle"),
        arrow(400, 128, 536, 98),
        arrow(400, 141, 536, 146),
        arrow(400, 154, 536, 194),
        arrow(325, 200, 325, 252),
        arrow(540, 272, 402, 190, dash="4 4"),
        text(500, 240, "scrape", 12, MUTED, "middle"),
        f'<path d="M93 216 v96 q0 12 12 12 h96" fill="none" stroke="{RED}" stroke-width="1.6" stroke-dasharray="4 4"/>',
        f'<path d="M196 318 l12 12 m0 -12 l-12 12" stroke="{RED}" stroke-width="2.4"/>',
        text(34, 338, "no way round", 12, RED),
    ]
    picture("topology", "Only the gateway can reach the engines", 746, 366, parts)


if __name__ == "__main__":
    for draw in (turns, usage, life, topology):
        draw()
