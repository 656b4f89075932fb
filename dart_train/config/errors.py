"""What is wrong with a recipe: every issue has the path of its key, and one exception carries all of them."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class ConfigIssue:
    """One mistake: its key, what is wrong there, and what to do about it."""

    path: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + self.what + (f"; {self.remedy}" if self.remedy else "")


class RecipeError(ValueError):
    """All issues of a recipe. `note` is a last line for what could not be checked."""

    def __init__(self, issues: Sequence[ConfigIssue], source: str = "recipe", note: str = "") -> None:
        self.issues, self.source = tuple(issues), source
        count = "1 problem" if len(issues) == 1 else f"{len(issues)} problems"
        lines = [f"{source}: {count}", *(f"  {issue}" for issue in issues), *([note] if note else [])]
        super().__init__("\n".join(lines))


def unexpected(path: str, given: object, expected: str, remedy: str = "") -> ConfigIssue:
    return ConfigIssue(path, f"given {_SHORT.repr(given)}, expected {expected}", remedy)


def unknown_key(path: str, key: object, known: Sequence[str], all_paths: Iterable[str] = ()) -> ConfigIssue:
    """`key` is not one of `known` at `path`. Suggests a similar key there, or the same key in another section."""
    near = difflib.get_close_matches(str(key), known, n=1)
    elsewhere = sorted((p for p in all_paths if p.rsplit(".", 1)[-1] == key), key=lambda p: p.count("."))
    guess = join(path, near[0]) if near else elsewhere[0] if elsewhere else ""
    remedy = f"did you mean {guess}?" if guess else f"known here: {', '.join(known)}"
    return ConfigIssue(join(path, key), "unknown key", remedy)


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
