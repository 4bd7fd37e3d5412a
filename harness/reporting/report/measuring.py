"""The documentation's page on measuring, as a part of the report."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import UserError

if TYPE_CHECKING:
    from markupsafe import Markup

_NAME = "measuring.md"


def measuring_text() -> str:
    """The page in Markdown: the checkout's, or the one that was installed.

    Raises:
        UserError: it is in neither place.
    """
    path = Path(__file__).parents[3] / "docs" / _NAME
    if not path.exists():
        try:
            files = metadata.distribution("attention-zoo").files or []
        except metadata.PackageNotFoundError:
            files = []
        found = [Path(str(file.locate())) for file in files if file.name == _NAME]
        if not found:
            raise UserError(f"{path} is missing: install attention-zoo again, or restore the file")
        path = found[0]
    return path.read_text(encoding="utf-8")


def measuring_html() -> Markup:
    """:func:`measuring_text` as HTML without its title; headings are a level lower."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(measuring_text())
    start = next((i for i, t in enumerate(tokens) if t.type == "heading_close"), -1) + 1
    kept = tokens[start:]
    for index, token in enumerate(kept):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
        elif token.type == "th_open":
            if kept[index + 1].content:
                token.attrSet("scope", "col")
            else:  # an empty head is no head
                token.tag = kept[index + 2].tag = "td"
    html = parser.renderer.render(kept, parser.options, {})
    html = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", html)
    html = re.sub(r'<img src="([^"]*)"[^>]*>', r"(picture: docs/\1)", html)
    before = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
    return Markup(html.replace("<table>", before).replace("</table>", "</table></div>"))
