"""One call by each of its implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attention_zoo import AttentionError
from attention_zoo.implementations import list_implementations, use_implementation

from ..base.errors import is_out_of_memory
from ..config.variants import Variant

if TYPE_CHECKING:
    from .latency import Case

#: Cores with several implementations, and the modules that have them.
CORES = {
    "nla": "nla",
    "nlsa": "nlsa",
    "enla": "enlca",
    "criss-cross": "criss-cross",
    "largest": "top-k",
}


def by_implementation(
    core: str, variant: Variant, case: Case, without: Sequence[str] = ()
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The call by each implementation that can run, and why the others cannot."""
    functions, notes = {}, {}
    for name in list_implementations()[core]:
        if name == "auto" or name in without:
            continue
        choice = f"{core}={name}"
        try:
            with use_implementation(choice):
                function = case.function(variant)
            functions[name] = _under(choice, function)
            functions[name]()
        except AttentionError as error:
            functions.pop(name, None)
            notes[name] = str(error).partition("cannot run here: ")[2]
        except (RuntimeError, MemoryError) as error:
            functions.pop(name, None)
            if not is_out_of_memory(error):
                raise
            notes[name] = "out of memory"
    return functions, notes


def _under(choice: str, function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with use_implementation(choice):
            return function()

    return run
