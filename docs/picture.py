"""Draws docs/picture.svg: what becomes of a kernel, from training to a file.

    python docs/picture.py

The panel and the text change color together, so that the picture can be read on light and on dark
pages, whichever of the two the reader's system asks for.
"""

import pathlib
import random

SIZE, CELL = 6, 17  # cells of a side of the kernel, and pixels of a cell
SHARED = ("#4c78a8", "#f58518", "#54a24b")
STYLE = """
    .panel { fill: #ffffff; stroke: #d0d7de }
    .box { fill: #f6f8fa; stroke: #d0d7de }
    .empty { fill: #eaeef2 }
    text { fill: #1f2328; font: 13px sans-serif; text-anchor: middle }
    .code { font-family: ui-monospace, monospace; font-size: 12px }
    .title { font-weight: 600 }
    .faint { fill: #59636e; font-size: 12px }
    .arrow { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
    .tip { fill: #59636e }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #0d1117; stroke: #3d444d }
      .box { fill: #151b23; stroke: #3d444d }
      .empty { fill: #21262d }
      text { fill: #f0f6fc }
      .faint { fill: #9198a1 }
      .arrow { stroke: #9198a1 }
      .tip { fill: #9198a1 }
    }
"""


def cell(x: float, y: float, color: str | None, opacity: float = 1.0) -> str:
    """One weight; an empty cell without a color."""
    look = f'fill="{color}" fill-opacity="{opacity:.2f}"' if color else 'class="empty"'
    return f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2" {look}/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A centered line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float) -> str:
    """A rounded rectangle."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="box"/>'


def arrow(path: str) -> str:
    """A line with a tip."""
    return f'<path d="{path}" class="arrow"/>'


def grid(x: float, y: float, cells: list[tuple[str | None, float]]) -> list[str]:
    """Rows of cells."""
    return [
        cell(x + CELL * (i % SIZE), y + CELL * (i // SIZE), color, opacity)
        for i, (color, opacity) in enumerate(cells)
    ]


def picture() -> str:
    """The whole drawing."""
    draw = random.Random(3)
    weights = [draw.gauss(0, 1) for _ in range(SIZE * SIZE)]
    dense = [("#4c78a8", 0.15 + 0.4 * min(abs(w), 2)) for w in weights]
    kept = [None if abs(w) < 0.8 else (w > 0) + (abs(w) > 1.4 and w > 0) for w in weights]
    encoded = [(None if k is None else SHARED[k], 1.0) for k in kept]
    parts = [
        '<rect x="0.5" y="0.5" width="899" height="239" rx="10" class="panel"/>',
        text(85, 34, "dense kernel", "title"),
        *grid(35, 64, dense),
        text(85, 196, "float32 weights", "faint"),
        text(85, 214, "any pytree, any model", "faint"),
        arrow("M 152 115 H 252"),
        text(202, 104, "tx.encode", "code"),
        text(202, 136, "in every step", "faint"),
        text(318, 34, "parameter in training", "title"),
        *grid(268, 64, encoded),
        text(318, 196, "pruned, values shared", "faint"),
        text(318, 214, "what the loss sees", "faint"),
        arrow("M 385 115 H 465"),
        text(424, 104, "tx.pack", "code"),
        text(424, 136, "once", "faint"),
        text(560, 34, "packed leaf", "title"),
        box(480, 56, 160, 116),
    ]
    for row, (label, colors) in enumerate(
        (
            ("mask", ["#8b949e" if k is not None else None for k in kept[:5]]),
            ("indices", [SHARED[k] for k in kept if k is not None][:5]),
            ("table", list(SHARED)),
        )
    ):
        parts.append(text(516, 81 + 38 * row, label, "faint"))
        parts.extend(cell(546 + CELL * i, 68 + 38 * row, color) for i, color in enumerate(colors))
    parts += [
        text(560, 196, "equal to what the loss saw,", "faint"),
        text(560, 214, "bit for bit", "faint"),
        arrow("M 648 100 C 680 100 680 72 712 72"),
        arrow("M 648 128 C 680 128 680 166 712 166"),
        box(720, 40, 160, 66),
        text(800, 68, "nnopt.save", "code"),
        text(800, 90, "a small file", "faint"),
        box(720, 132, 160, 66),
        text(800, 160, "nnopt.on_packed", "code"),
        text(800, 182, "packed execution", "faint"),
    ]
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    tip += 'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" class="tip"/></marker>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 240" role="img">'
    title = "<title>A dense kernel, encoded, packed, and saved or run packed</title>"
    body = "\n  ".join(parts)
    return (
        f"{head}\n  {title}\n  <style>{STYLE}  </style>\n  <defs>{tip}</defs>\n  {body}\n</svg>\n"
    )


if __name__ == "__main__":
    pathlib.Path(__file__).with_suffix(".svg").write_text(picture())
