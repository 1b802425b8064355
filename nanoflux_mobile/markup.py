"""HTML by small functions: text is escaped unless it is markup already, so none is forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Lets a browser refuse whatever a page should not hold: scripts, frames, the network."""
_VOID = frozenset({"img", "link", "meta"})


class Markup(str):
    """HTML that goes into the page as it stands."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Text as markup; what UTF-8 cannot hold, such as a broken byte of an argument, becomes `?`."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(text.encode(errors="replace").decode()))


def join(parts: Iterable[str]) -> Markup:
    """Parts one after another, text among them escaped."""
    return Markup("".join(map(escape, parts)))


def spaced(*parts: str) -> Markup:
    """Parts with a space between them, so that they stay words where a page is read as text."""
    return Markup(" ".join(map(escape, parts)))


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """`<name ...>children</name>`; write class as `class_` and aria-label as `aria_label`."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    opening = f"<{name}{pairs}>"
    return Markup(opening if name in _VOID else f"{opening}{join(children)}</{name}>")


def section(key: str, title: str, lead: str, *children: str) -> Markup:
    """A part of the page with its heading and the one or two sentences that say how to read it."""
    heading = element("h2", title, id=f"{key}-title")
    return element(
        "section",
        heading,
        element("p", lead, class_="lead"),
        *children,
        id=key,
        aria_labelledby=f"{key}-title",
    )


def scroller(label: str, child: Markup) -> Markup:
    """A box that scrolls sideways by itself where the page is too narrow for what it holds."""
    return element("div", child, class_="scroll", tabindex="0", role="region", aria_label=label)


def head(columns: Sequence[str], numeric: Iterable[str] = ()) -> Markup:
    """The header row of a table; columns named in `numeric` are set to the right."""
    right = set(numeric)
    cells = [
        element("th", name, scope="col", class_="number" if name in right else "text")
        for name in columns
    ]
    return element("thead", element("tr", *cells))


def block(title: str, columns: int, rows: Iterable[Markup]) -> Markup:
    """Table rows under a heading of their own, which spans all columns; `rows` are their cells."""
    heading = element("th", title, scope="rowgroup", colspan=str(columns))
    return element("tbody", element("tr", heading), *(element("tr", row) for row in rows))


def bar(share: float, kind: str = "", floor: float | None = None) -> Markup:
    """A bar filled to `share` of its track, with a tick at `floor`; both clipped to 0..1.

    It repeats a number that stands beside it, so screen readers skip it.
    """
    parts = [element("span", class_=f"fill {kind}".strip(), style=f"width:{percent(share)}")]
    if floor is not None:
        parts.append(element("span", class_="tick", style=f"left:{percent(floor)}"))
    return element("span", *parts, class_="bar", aria_hidden="true")


def percent(share: float) -> str:
    """A share for a style attribute, clipped to 0..1; not-a-number is 0."""
    return f"{100 * min(max(share, 0.0), 1.0) if share == share else 0.0:.2f}%"


def document(title: str, css: str, body: Markup) -> str:
    """A whole page that holds its style, asks nothing of the network and runs no script."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(css)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
