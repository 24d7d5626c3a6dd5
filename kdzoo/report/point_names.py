"""Names of points in a plot, placed where they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Size of a name in typographic points, and how wide a letter is, as a share of that.
SIZE, LETTER = 8.0, 0.58
#: Where a name can be: to which side it goes, across and up, tried in this order.
SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
#: Points from the middle of a marker to the name.
GAP = 7.0

#: Share of its place that a name may cover of what is there.
MOST_COVERED = 0.12

#: Left, bottom, right and top.
Box = tuple[float, float, float, float]


def name_points(
    figure: Figure,
    axes: Axes,
    named: Sequence[tuple[str, float, float]],
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Write names (label, x, y) next to their points; no name should cover ``points``, or ``line``, by its corners.

    The axes must have their final limits. The first names choose first. A name takes the place that covers least; one
    that would be unreadable there is left out.
    """
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]  # lays the axes out
    unit = figure.dpi / 72
    inside = axes.get_window_extent()
    frame = (inside.x0, inside.y0, inside.x1, inside.y1)
    taken = [around(axes, point, 4 * unit) for point in points]
    ends = [around(axes, point, unit) for point in line]
    taken += [
        (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])) for a, b in pairwise(ends)
    ]  # each part of the line is level or upright
    for label, x, y in named:
        middle = axes.transData.transform((x, y))
        places = list(candidates(label, (float(middle[0]), float(middle[1])), unit))
        box, side = min(places, key=lambda place: covered(place[0], taken, frame))
        if covered(box, taken, frame) > MOST_COVERED * area(box):
            continue
        taken.append(box)
        sides = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
        reach = [part * (GAP if 0 in side else GAP * 0.6) for part in side]
        text = axes.annotate(label, (x, y), (reach[0], reach[1]), textcoords="offset points", fontsize=SIZE,
                             ha=sides[side[0]][0], va=sides[side[1]][1])  # fmt: skip
        text.set_in_layout(False)


def around(axes: Axes, point: tuple[float, float], half: float) -> Box:
    """The box of a marker."""
    x, y = axes.transData.transform(point)
    return float(x) - half, float(y) - half, float(x) + half, float(y) + half


def candidates(label: str, middle: tuple[float, float], unit: float) -> Iterator[tuple[Box, tuple[int, int]]]:
    """The boxes that a name can have, with their sides."""
    width, height = len(label) * SIZE * LETTER * unit, SIZE * 1.15 * unit
    for side in SIDES:
        gap = (GAP if 0 in side else GAP * 0.6) * unit
        left = middle[0] + side[0] * gap - width * (1 - side[0]) / 2
        bottom = middle[1] + side[1] * gap - height * (1 - side[1]) / 2
        yield (left, bottom, left + width, bottom + height), side


def covered(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """How much of what is there a box covers; leaving the frame counts twice."""
    outside = area(box) - overlap(box, frame)
    return 2 * outside + sum(overlap(box, other) for other in taken)


def overlap(one: Box, other: Box) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
