"""How charts of a run are drawn: inline SVG that follows the page, its font, its light and dark colours.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)

#: Stand-in colours that matplotlib draws with -> variables of report.css.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0506{i:02x}" for i in range(8))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card"} | {c: f"c{i}" for i, c in enumerate(SERIES)}
#: Colours that mean the same in every chart; other names take the remaining ones in turn.
ROLES = {"student": 0, "control": 1, "teacher": 2, "export": 3}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")

#: How much larger a drawing is shown, at most, than it was drawn: its 10 points are then the 16 pixels of the page's
#: text. A phone shows it smaller than it was drawn, and its text is still readable.
LARGEST = 1.2

#: How matplotlib draws.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kdzoo",  # equal content gives equal ids
    "text.parse_math": False,  # names may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def place(role: str, turn: int = 0) -> int:
    """The number of a role's colour and marker; names without a role take what the roles leave over."""
    spare = [i for i in range(len(SERIES)) if i not in ROLES.values()]
    return ROLES.get(role, spare[turn % len(spare)])


def colour(role: str, turn: int = 0) -> str:
    return SERIES[place(role, turn)]


def highest_nearby(x: float, y: float, points: Sequence[tuple[float, float]]) -> bool:
    """Whether the nearest other point along x lies lower, so that a name above runs into nothing."""
    others = [point for point in points if point != (x, y)]
    nearest = min(others, key=lambda point: abs(point[0] - x), default=(x, y))
    return nearest[1] <= y


def name_point(axes: Axes, label: str, point: tuple[float, float], offset: int, size: int) -> None:
    """Write a label so many typographic points above a point of the plot, or below it."""
    side = "bottom" if offset > 0 else "top"
    axes.annotate(label, point, (0, offset), textcoords="offset points", fontsize=size, ha="center", va=side)


def whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def render(name: str, words: str, draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Return the drawing as an SVG element; ``words`` is what a screen reader says of it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has a font for it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(name, words, written.getvalue(), width)


def inline(name: str, words: str, document: str, width: float) -> str:
    """Turn matplotlib's document, ``width`` inches wide, into an element of the page: its ids, colours and font.

    Only attributes are touched, so that no text in the drawing can be taken for markup.
    """
    root = ElementTree.fromstring(document)
    for child in [child for child in root if child.tag == f"{{{SVG}}}metadata"]:
        root.remove(child)
    for parent in root.iter():
        for child in [child for child in parent if child.tag == f"{{{SVG}}}style"]:
            parent.remove(child)  # it would apply to the whole page
        for key, value in parent.attrib.items():
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href":
                parent.set(key, value.replace("#", f"#{name}-", 1))
            elif key == "clip-path":
                parent.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style":
                parent.set(key, page_style(value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "chart")
    root.set("style", f"max-width: {LARGEST * width:.3g}in")
    root.set("role", "img")
    root.set("aria-label", words)
    return ElementTree.tostring(root, encoding="unicode")


def page_style(style: str) -> str:
    """Replace stand-in colours by the page's variables and drop the font family, which the page decides."""
    for stand_in, variable in VARIABLES.items():
        style = style.replace(stand_in, f"var(--{variable})")
    return "; ".join(part for part in style.split("; ") if not part.startswith("font-family"))
