"""Matplotlib figures as SVG that lives inside an HTML page."""

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#1c2733"
SOFT = "#52606d"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": "#e4e9ee",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,  # Of what is rasterised.
    "svg.fonttype": "none",  # Text stays text: it can be searched and read aloud.
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
_CSS_INCH = 100  # Pixels; a figure is not drawn larger than this,
_MIN_CSS_INCH = 55  # nor smaller than this: it scrolls on a narrow page.
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_NAMESPACE = re.compile(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"')
_ID = re.compile(r'(\bid="|url\(#|href="#)')


def inline_svg(
    name: str, title: str, size: tuple[float, float], draw: Callable[[Figure], None]
) -> str:
    """Draws one figure.

    Args:
      name: Unique in the page; prefixes every id inside.
      title: What a screen reader says in place of the drawing.
      size: Width and height in inches.
      draw: Puts axes into an empty figure.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    opening, rest = _METADATA.sub("", text[text.index("<svg") :]).split(">", 1)
    opening = _NAMESPACE.sub("", opening)
    body = _ID.sub(rf"\g<1>{name}-", rest.replace("xlink:href", "href"))
    return (
        f'<div class="scroll" tabindex="0">{opening} style="max-width:{size[0] * _CSS_INCH:.0f}px;'
        f'min-width:{size[0] * _MIN_CSS_INCH:.0f}px" role="img" '
        f'aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{html.escape(title)}</title>{body}</div>'
    )
