"""HTML elements. Every text is escaped, except `Html`, which this file alone creates."""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is already markup."""


def element(name: str, *children: Any, **attributes: Any) -> Html:
    """An element; `class_` stands for the attribute class."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{_join(children)}</{name}>")


def group(*children: Any) -> Html:
    """Several elements one after the other."""
    return Html(_join(children))


def image(content: bytes, alt: str) -> Html:
    """A PNG or SVG picture, embedded in the page so that browsers run no script of an SVG."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Html(f'<img src="{data}" alt="{html.escape(alt)}">')


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """A table of names and values."""
    rows = [element("tr", element("th", name), element("td", shown(value))) for name, value in pairs]
    return element("table", *rows, class_="facts") if rows else Html()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that is sorted by clicking on a column's heading."""
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [element("tr", *(element("td", shown(value), **_sort_key(value)) for value in row)) for row in rows]
    return element(
        "div", element("table", element("thead", head), element("tbody", *body), class_="sortable"), class_="scroll"
    )


def beside(*children: Any) -> Html:
    """Pictures side by side, as far as the page is wide enough."""
    return element("div", *children, class_="beside")


def folded(title: str, *children: Any) -> Html:
    """A section that is closed until it is clicked."""
    return element("details", element("summary", title), *children)


def section(title: str, *children: Any) -> Html:
    """A section with a heading, or nothing if it would be empty."""
    return element("section", element("h2", title), *children) if any(children) else Html()


def page(title: str, subtitle: str, state: str, *children: Any) -> str:
    """The whole document. Its security policy forbids the browser to load anything."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = group(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("title", f"{title} · bilevel"),
        Html(f"<style>{_STYLE}</style>"),
    )
    heading = element("h1", title, " ", element("span", state, class_=f"state {state}"))
    body = element(
        "body", heading, element("p", subtitle, class_="subtitle"), *children, Html(f"<script>{_SCRIPT}</script>")
    )
    return f'<!doctype html>\n<html lang="en">{element("head", head)}{body}</html>\n'


def shown(value: Any) -> Any:
    """A value as text; numbers have six digits."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else value


def _sort_key(value: Any) -> dict[str, Any]:
    return {"data-value": value} if isinstance(value, int | float) else {}


def _join(children: Iterable[Any]) -> str:
    return "".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.subtitle { color: #5b6472; margin: .2rem 0 1rem; }
.state { font-size: .8rem; font-weight: 600; padding: .15rem .55rem; border-radius: 1rem; vertical-align: middle; }
.state { background: #e4e8ee; }
.state.done { background: #d6efdd; } .state.failed { background: #f8d9d6; } .state.interrupted { background: #fbeacb; }
img { max-width: 100%; height: auto; display: block; margin: .4rem 0; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top; }
.facts th { font-weight: 500; color: #5b6472; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem; }
.scroll { overflow-x: auto; } .sortable th { cursor: pointer; border-bottom: 2px solid #cfd6df; white-space: nowrap; }
.sortable th[aria-sort=ascending]::after { content: " \\25B2"; } .sortable th[aria-sort=descending]::after { content: " \\25BC"; }
.sortable td { border-bottom: 1px solid #e8ebf0; white-space: nowrap; } .error { color: #a3261b; }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.2rem; }
"""

_SCRIPT = """
for (const head of document.querySelectorAll(".sortable th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => isNaN(a) || isNaN(b) || a === "" || b === "" ? String(a).localeCompare(String(b)) : a - b;
  const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...(down ? rows.reverse() : rows));
});
"""
