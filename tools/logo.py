"""Draw the book's logo and favicon: a grid of dots that dissolves into noise."""

import random
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
COLOR = "#0072b2"


def dots(columns: int, rows: int, step: float) -> str:
    """Dots in rows, displaced and shrunk the more the farther right they stand."""
    draw = random.Random(4)
    circles = []
    for i in range(columns):
        noise = i / (columns - 1)
        for j in range(rows):
            x = step * (i + 0.5) + draw.gauss(0, 0.32 * step * noise)
            y = step * (j + 0.5) + draw.gauss(0, 0.32 * step * noise)
            radius = step * (0.40 - 0.20 * noise)
            circles.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
                f'fill-opacity="{1 - 0.5 * noise:.2f}"/>'
            )
    return "\n".join(circles)


def picture(columns: int, rows: int, step: float) -> str:
    """Wrap the dots in an SVG with room at the rims."""
    width, height, rim = columns * step, rows * step, step / 2
    box = f"{-rim:g} {-rim:g} {width + 2 * rim:g} {height + 2 * rim:g}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" fill="{COLOR}">'
    return f"{head}\n{dots(columns, rows, step)}\n</svg>\n"


if __name__ == "__main__":
    (STATIC / "logo.svg").write_text(picture(10, 5, 20), encoding="utf8")
    (STATIC / "favicon.svg").write_text(picture(4, 4, 20), encoding="utf8")
