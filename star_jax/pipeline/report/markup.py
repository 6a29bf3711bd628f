"""The few HTML elements that a report is made of; everything given is escaped."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_NOT_IN_ID = re.compile(r"[^a-z0-9]+")


class Cell(NamedTuple):
    """One cell: its text, and a class of the style sheet ("word" is to the left)."""

    text: str
    style: str = ""


class LegendEntry(NamedTuple):
    """What a colour stands for."""

    label: str
    colour: str
    dashed: bool = False


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """A heading that the contents can point to, and what follows it."""
    anchor = section_id(title)
    body = "\n".join(part for part in parts if part)
    return (
        f'<section aria-labelledby="{anchor}">\n'
        f'<h2 id="{anchor}">{html.escape(title)}</h2>\n{body}\n</section>'
    )


def section_id(title: str) -> str:
    """The anchor of a title."""
    return _NOT_IN_ID.sub("-", title.lower()).strip("-")


def table(
    caption: str,
    head: Sequence[str | Cell],
    rows: Iterable[Sequence[str | Cell]],
    *,
    note: str = "",
) -> str:
    """A table whose first column names the row; wide ones scroll on their own.

    Args:
      caption: Says what the table shows.
      head: One title per column, in the style of its cells.
      rows: Cells; plain text has no style.
      note: Small print below.
    """
    titles = "".join(_cell("th", cell, ' scope="col"') for cell in head)
    body = "\n".join(_row(row) for row in rows)
    label = html.escape(caption, quote=True)
    small = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table>\n'
        f"<caption>{html.escape(caption)}</caption>\n"
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>{small}"
    )


def figure(svg: str, caption: str, legend: Sequence[LegendEntry] = ()) -> str:
    """A drawing with what its colours mean and what it shows."""
    entries = "".join(
        f'<li><span class="{"dash" if entry.dashed else "swatch"}" '
        f'style="--colour:{entry.colour}"></span>{html.escape(entry.label)}</li>'
        for entry in legend
    )
    named = f'<ul class="legend">{entries}</ul>' if entries else ""
    return f"<figure>{svg}{named}<figcaption>{html.escape(caption)}</figcaption></figure>"


def columns(*parts: str) -> str:
    """Beside each other where the screen is wide enough."""
    return f'<div class="columns">{"".join(part for part in parts if part)}</div>'


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: title, value, remark."""
    inner = "".join(
        f"<div><dt>{html.escape(title)}</dt><dd>{html.escape(value)}"
        f"<small>{html.escape(remark)}</small></dd></div>"
        for title, value, remark in entries
    )
    return f'<dl class="cards">{inner}</dl>'


def details(summary: str, *parts: str) -> str:
    """Folded away until asked for."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def code(text: str) -> str:
    """Verbatim text: commands, JSON."""
    return f'<pre tabindex="0"><code>{html.escape(text)}</code></pre>'


def page(title: str, lead: str, style: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document; it needs no other file.

    Args:
      title: Of the document.
      lead: One sentence under it.
      style: The style sheet.
      sections: Title and markup of each.
    """
    contents = "".join(
        f'<li><a href="#{section_id(name)}">{html.escape(name)}</a></li>' for name, _ in sections
    )
    body = "\n".join(markup for _, markup in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>\n<p>{html.escape(lead)}</p>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _row(row: Sequence[str | Cell]) -> str:
    first, *others = row
    name = _cell("th", first, ' scope="row"')
    cells = "".join(_cell("td", cell) for cell in others)
    return f"<tr>{name}{cells}</tr>"


def _cell(tag: str, cell: str | Cell, more: str = "") -> str:
    text, style = cell if isinstance(cell, Cell) else Cell(cell)
    named = f' class="{style}"' if style else ""
    return f"<{tag}{more}{named}>{html.escape(text)}</{tag}>"
