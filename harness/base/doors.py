"""What can be typed after ``python -m harness.``, read without importing any of it."""

from __future__ import annotations

import ast
from pathlib import Path

_FOLDER = Path(__file__).parents[1]


def doors() -> dict[str, str]:
    """The commands by name, each with the first line of its file, which says what it does."""
    found = {}
    for path in sorted(_FOLDER.glob("[!_]*.py")):
        source = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in source:
            docstring = ast.get_docstring(ast.parse(source)) or ""
            found[path.stem] = docstring.partition("\n")[0].replace("`", "")
    return found
