"""A drawing: lines, bars, markers, words and pictures, written as SVG or as PNG.

One drawing code for both, and for pages and files: in a page colours are CSS variables, which
follow light and dark; in a file they are those of the light page. Lengths are pixels, y grows
downwards.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.escaping import html, one_line
from maskclip_bench.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

SERIES = (
    "#0072b2",
    "#d98200",
    "#00896a",
    "#cc4e00",
    "#a8578a",
    "#3a8fc4",
    "#7f6a1f",
    "#5f6368",
)
"""Colours of rows: those of Okabe and Ito, which the colour-blind tell apart, darkened for lines on
white. Markers differ as well, so that nothing depends on colour alone."""
SERIES_DARK = (
    "#5cb3ea",
    "#f2b134",
    "#2fd0a4",
    "#ff8a4a",
    "#e39dc7",
    "#9fd3f5",
    "#d3bf6a",
    "#b4b8bd",
)
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1d232b",
    "muted": "#5b6572",
    "faint": "#d9dee5",
    "accent": "#0b6bcb",
    "good": "#0072b2",
    "bad": "#cc4e00",
    **{f"s{index}": colour for index, colour in enumerate(SERIES)},
}
"""Role -> colour on a light page; the page's style sheet has the same roles for dark."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
PNG_SCALE = 2.0

LETTER = 0.56
"""Mean width of a letter as a share of the font's size."""


def series_role(index: int) -> str:
    """Role of a row's colour, by its place among the rows."""
    return f"s{index % len(SERIES)}"


def text_width(text: str, size: float) -> float:
    """Rough width of a line of text."""
    return LETTER * size * len(one_line(text))


def fitted(size: tuple[int, int], side: float) -> tuple[float, float, float, float]:
    """Left, top, width and height of a picture of a size, whole and centred in a square.

    Example:
        >>> fitted((20, 10), 40)
        (0.0, 10.0, 40.0, 20.0)
    """
    scale = side / max(size)
    width, height = size[0] * scale, size[1] * scale
    return (side - width) / 2, (side - height) / 2, width, height


@dataclass
class Drawing:
    """Something drawn.

    Attributes:
        width: In pixels.
        height: In pixels.
        title: What it shows, read aloud by screen readers.
        items: Kind and values of each part, in drawing order.
        scale: How positions become values, for the page's script: {"x": [low, high, left, right],
            "y": [low, high, bottom, top], "x_label", "log"}; None where
            parts carry their own hints.
    """

    width: float
    height: float
    title: str
    items: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    scale: dict[str, Any] | None = None

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        opacity: float = 1.0,
        hint: str = "",
    ) -> None:
        """A filled box; `hint` is what a page says where the pointer is over it."""
        values = {"x": x, "y": y, "width": width, "height": height, "fill": fill}
        self.items.append(("rect", {**values, "opacity": opacity, "hint": hint}))

    def line(
        self,
        points: list[tuple[float, float]],
        *,
        stroke: str = "ink",
        width: float = 1.0,
        dashed: bool = False,
        opacity: float = 1.0,
        name: str = "",
    ) -> None:
        """A line through points; `name` says whose values a page shows (see `scale`)."""
        values = {"points": points, "stroke": stroke, "width": width}
        self.items.append(("line", {**values, "dashed": dashed, "opacity": opacity, "name": name}))

    def marker(
        self,
        x: float,
        y: float,
        *,
        shape: str = "o",
        fill: str = "ink",
        size: float = 4.0,
        hint: str = "",
    ) -> None:
        """A symbol; `shape` is one of `MARKERS`, `size` half its extent; `hint` as of `rect`."""
        values = {"x": x, "y": y, "shape": shape, "fill": fill, "size": size, "hint": hint}
        self.items.append(("marker", values))

    def text(
        self,
        x: float,
        y: float,
        text: object,
        *,
        size: float = 12.0,
        fill: str = "ink",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """One line of text on the baseline y; `anchor` is start, middle or end."""
        values = {"x": x, "y": y, "text": one_line(text), "size": size, "fill": fill}
        self.items.append(("text", {**values, "anchor": anchor, "bold": bold}))

    def image(self, x: float, y: float, width: float, height: float, picture: Image) -> None:
        """A picture, stretched to a box."""
        values = {"x": x, "y": y, "width": width, "height": height, "picture": picture}
        self.items.append(("image", values))

    def to_svg(self, *, inline: bool = False) -> str:
        """SVG: for a page (`inline`, colours are CSS variables), or as a file of its own."""
        return _Svg(self, inline=inline).text()

    def save(self, path: Path) -> None:
        """Write it as .svg or .png, by the suffix.

        Raises:
            ConfigError: The suffix is another.
            MissingDependencyError: A PNG needs matplotlib.
            StorageError: The disk refused.
        """
        if path.suffix == ".svg":
            storage.write_text(path, self.to_svg())
        elif path.suffix == ".png":
            with storage.atomic_file(path) as temporary:
                temporary.write_bytes(self.to_png())
        else:
            raise ConfigError(f"{path.name!r} is neither .svg nor .png. Name the file so.")

    def to_png(self, *, scale: float = PNG_SCALE) -> bytes:
        """PNG on white, `scale` pixels a pixel.

        Raises:
            MissingDependencyError: matplotlib, which draws it, is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                f"A PNG needs matplotlib: {install_command('pictures')}. SVG needs nothing."
            ) from error

        figure = Figure(figsize=(self.width / 72, self.height / 72), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.set_axis_off()
        for kind, values in self.items:
            _PNG[kind](axes, values)
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A name may have characters that the font lacks: they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="png", dpi=72 * scale)
        return buffer.getvalue()


# --- SVG -----------------------------------------------------------------------------------------


class _Svg:
    def __init__(self, drawing: Drawing, *, inline: bool) -> None:
        self.drawing = drawing
        self.inline = inline

    def text(self) -> str:
        drawing = self.drawing
        size = f'viewBox="0 0 {_number(drawing.width)} {_number(drawing.height)}"'
        fixed = f'width="{_number(drawing.width)}" height="{_number(drawing.height)}"'
        if self.inline and drawing.scale is not None:
            fixed += f' data-scale="{html(json.dumps(drawing.scale, allow_nan=False))}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {fixed} role="img" '
            f'aria-label="{html(drawing.title)}" font-family="{html(FONT)}">',
            f"<title>{html(drawing.title)}</title>",
        ]
        if not self.inline:
            parts.append(f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>')
        parts += [getattr(self, f"_{kind}")(values) for kind, values in drawing.items]
        return "".join([*parts, "</svg>"])

    def _colour(self, role: str) -> str:
        return f"var(--{role})" if self.inline else LIGHT[role]

    def _rect(self, v: dict[str, Any]) -> str:
        opacity = "" if v["opacity"] == 1 else f' opacity="{_number(v["opacity"])}"'
        return (
            f'<rect x="{_number(v["x"])}" y="{_number(v["y"])}" width="{_number(v["width"])}" '
            f'height="{_number(v["height"])}" fill="{self._colour(v["fill"])}"'
            f"{opacity}{_end('rect', v)}"
        )

    def _line(self, v: dict[str, Any]) -> str:
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in v["points"])
        dashes = ' stroke-dasharray="3 3"' if v["dashed"] else ""
        opacity = "" if v["opacity"] == 1 else f' opacity="{_number(v["opacity"])}"'
        name = f' data-name="{html(v["name"])}"' if v["name"] and self.inline else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="{self._colour(v["stroke"])}" '
            f'stroke-width="{_number(v["width"])}" stroke-linejoin="round"{dashes}{opacity}{name}/>'
        )

    def _marker(self, v: dict[str, Any]) -> str:
        x, y, s, colour = v["x"], v["y"], v["size"], self._colour(v["fill"])
        if v["shape"] == "o":
            place = f'cx="{_number(x)}" cy="{_number(y)}" r="{_number(s)}"'
            return f'<circle {place} fill="{colour}"{_end("circle", v)}'
        points = " ".join(
            f"{_number(x + s * a)},{_number(y + s * b)}" for a, b in _SHAPES[v["shape"]]
        )
        return f'<polygon points="{points}" fill="{colour}"{_end("polygon", v)}'

    def _text(self, v: dict[str, Any]) -> str:
        bold = ' font-weight="600"' if v["bold"] else ""
        anchor = "" if v["anchor"] == "start" else f' text-anchor="{v["anchor"]}"'
        return (
            f'<text x="{_number(v["x"])}" y="{_number(v["y"])}" font-size="{_number(v["size"])}" '
            f'fill="{self._colour(v["fill"])}"{anchor}{bold}>{html(v["text"])}</text>'
        )

    def _image(self, v: dict[str, Any]) -> str:
        buffer = io.BytesIO()
        v["picture"].save(buffer, "PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        return (
            f'<image x="{_number(v["x"])}" y="{_number(v["y"])}" width="{_number(v["width"])}" '
            f'height="{_number(v["height"])}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
        )


def _end(tag: str, values: dict[str, Any]) -> str:
    """The end of an element, with its hint inside where it has one."""
    hint = values["hint"]
    return f"><title>{html(hint)}</title></{tag}>" if hint else "/>"


_SHAPES: dict[str, list[tuple[float, float]]] = {
    "s": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "^": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
    "v": [(0, 1.15), (1.1, -0.85), (-1.1, -0.85)],
    "D": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    "P": [
        (-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4),
        (0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4),
    ],
    "X": [
        (-1.1, -0.6), (-0.6, -1.1), (0, -0.5), (0.6, -1.1), (1.1, -0.6), (0.5, 0),
        (1.1, 0.6), (0.6, 1.1), (0, 0.5), (-0.6, 1.1), (-1.1, 0.6), (-0.5, 0),
    ],
    "p": [(0, -1.15), (1.1, -0.35), (0.7, 0.95), (-0.7, 0.95), (-1.1, -0.35)],
}  # fmt: skip


def _number(value: float) -> str:
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


# --- PNG -----------------------------------------------------------------------------------------


def _png_rect(axes: Axes, v: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (v["x"], v["y"]),
            v["width"],
            v["height"],
            facecolor=LIGHT[v["fill"]],
            edgecolor="none",
            alpha=v["opacity"],
        )
    )


def _png_line(axes: Axes, v: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    xs, ys = zip(*v["points"], strict=True) if v["points"] else ((), ())
    style: Any = (0, (3, 3)) if v["dashed"] else "-"
    axes.add_line(
        Line2D(
            xs,
            ys,
            color=LIGHT[v["stroke"]],
            linewidth=v["width"],
            linestyle=style,
            alpha=v["opacity"],
        )
    )


def _png_marker(axes: Axes, v: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    axes.add_line(
        Line2D(
            [v["x"]],
            [v["y"]],
            marker=v["shape"],
            color=LIGHT[v["fill"]],
            markersize=2 * v["size"],
            markeredgewidth=0,
        )
    )


def _png_text(axes: Axes, v: dict[str, Any]) -> None:
    alignment = {"start": "left", "middle": "center", "end": "right"}[v["anchor"]]
    axes.text(
        v["x"],
        v["y"],
        v["text"],
        fontsize=0.92 * v["size"],
        color=LIGHT[v["fill"]],
        ha=alignment,
        va="baseline",
        fontweight="bold" if v["bold"] else "normal",
        parse_math=False,
    )


def _png_image(axes: Axes, v: dict[str, Any]) -> None:
    extent = (v["x"], v["x"] + v["width"], v["y"] + v["height"], v["y"])
    axes.imshow(v["picture"].convert("RGBA"), extent=extent, interpolation="nearest", aspect="auto")


_PNG = {
    "rect": _png_rect,
    "line": _png_line,
    "marker": _png_marker,
    "text": _png_text,
    "image": _png_image,
}
