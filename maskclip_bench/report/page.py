"""HTML from plain data: the templates, and text that never acts in a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from maskclip_bench import storage
from maskclip_bench.errors import storage_error
from maskclip_bench.escaping import visible
from maskclip_bench.report.drawing import MARKERS, Drawing, series_role

HERE = Path(__file__).resolve().parent


@cache
def environment() -> Environment:
    """Jinja with escaping of everything that is put in, and characters that act written out."""
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
    )


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def render(template: str, path: Path, **values: Any) -> None:
    """Render a template to a file.

    Args:
        template: Its name in `templates/`.
        path: Where the page goes.
        **values: What the template asks for; a missing one is an error.

    Raises:
        StorageError: The disk refused.
    """
    text = environment().get_template(template).render(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, text)


def svg(drawing: Drawing) -> Markup:
    """A drawing inside a page; its texts are escaped by `Drawing`."""
    return Markup(drawing.to_svg(inline=True))  # every text in it went through `html`


def legend_marker(series: int) -> Markup:
    """The marker of a row, for legends."""
    drawing = Drawing(16, 16, "")
    role = series_role(series)
    drawing.line([(0, 8), (16, 8)], stroke=role, width=2)
    drawing.marker(8, 8, shape=MARKERS[series % len(MARKERS)], fill=role, size=4.5)
    return svg(drawing)


def write_script(path: Path, statement: str, value: Any) -> None:
    """`statement` = value as a script, which a page can read from disk (it cannot read JSON so).

    Args:
        path: Where it goes.
        statement: What is assigned to ("window.maskclipReport").
        value: JSON-like; its texts are made visible.

    Raises:
        StorageError: The disk refused.
    """
    text = json.dumps(shown(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A script in a page ends at "</script"; in a file of its own nothing does, but files move.
    storage.write_text(path, f"{statement} = {text.replace('<', chr(92) + 'u003c')};\n")


def shown(value: Any) -> Any:
    """JSON-like values with every text made visible (`escaping.visible`)."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): shown(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(inner) for inner in value]
    return value


def copy_assets(folder: Path) -> None:
    """Style sheet and script into the report's folder.

    Raises:
        StorageError: The disk refused.
    """
    target = folder / "assets"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in ("report.css", "report.js"):
            shutil.copyfile(HERE / "assets" / name, target / name)
    except OSError as error:
        raise storage_error(error, target) from error
