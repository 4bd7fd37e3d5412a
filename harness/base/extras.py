"""How to install an extra of this package, which is on no index."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_NAME = "attention-zoo"
#: Where this file is part of a checkout, the folder that pip installs.
_CHECKOUT = Path(__file__).resolve().parents[2]


def install_extra(extra: str) -> str:
    """The command that installs an extra from where this package came: checkout, archive or git."""
    if (_CHECKOUT / "pyproject.toml").exists():
        folder = "." if Path.cwd() == _CHECKOUT else str(_CHECKOUT)
        return f"pip install -e {shlex.quote(f'{folder}[{extra}]')}"
    if source := _source():
        return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ {source}')}"
    return f"pip install {shlex.quote(f'.[{extra}]')} in the folder of {_NAME}"


def _source() -> str | None:
    """The address from which pip installed this package, as pip takes it (PEP 610)."""
    try:
        text = distribution(_NAME).read_text("direct_url.json")
        content = json.loads(text or "null")
        url = str(content["url"])
    except (PackageNotFoundError, ValueError, TypeError, KeyError):
        return None
    return f"{vcs['vcs']}+{url}" if (vcs := content.get("vcs_info")) else url
