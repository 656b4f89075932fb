"""Python 3.11.0 to 3.11.3 pickles a member of an Enum as `getattr(Enum, "name")`. `getattr` can reach anything, so a
checkpoint that names it is only safe where each call has exactly this form, on an Enum that is known."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

GETATTR = "builtins.getattr"
_GLOBALS = ("GLOBAL", "STACK_GLOBAL")
_STORES = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
_LOADS = ("BINGET", "LONG_BINGET", "GET")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8")


def reads_enum_members_only(file: Path, enums: frozenset[str]) -> bool:
    """Whether `getattr` is only called on these Enums, with the name of a member, in a file that torch saved."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return all(_is_harmless(archive.read(name), enums) for name in names)


def _is_harmless(pickled: bytes, enums: frozenset[str]) -> bool:
    pushed = [*_values(pickled)]
    for at, (_, value) in enumerate(pushed):
        if value not in ("__builtin__ getattr", "builtins getattr"):
            continue
        following = pushed[at + 1 : at + 5]
        kinds = [kind for kind, _ in following]
        if kinds != ["global", "string", "TUPLE2", "REDUCE"]:
            return False
        enum, name = str(following[0][1]).replace(" ", "."), str(following[1][1])
        if enum not in enums or not name.isidentifier() or name.startswith("_"):
            return False
    return True


def _values(pickled: bytes) -> list[tuple[str, Any]]:
    """(kind, value) of each operation; what was stored and is loaded again counts as what it is."""
    found: list[tuple[str, Any]] = []
    memo: dict[int, tuple[str, Any]] = {}
    operations: Any = pickletools.genops(pickled)
    for operation, argument, _ in operations:
        name = operation.name
        if name in _STORES:
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = found[-1]
        elif name in _LOADS:
            found.append(memo.get(int(argument), (name, None)))
        elif name in _GLOBALS:
            # STACK_GLOBAL takes module and name from the stack: torch saves with protocol 2, which does not write it.
            found.append(("global", argument) if name == "GLOBAL" else (name, "builtins getattr"))
        else:
            found.append(("string", argument) if name in _STRINGS else (name, argument))
    return found
