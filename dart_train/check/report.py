"""What a check found, as a small table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "does not hold", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One law. number: the largest difference found, relative; note: what was compared, or why it was not."""

    law: str
    verdict: Verdict
    number: float | None = None
    note: str = ""

    @classmethod
    def of(cls, law: str, difference: float, tolerance: float, note: str = "") -> Finding:
        """Not a number fails, too."""
        return cls(law, "holds" if difference <= tolerance else "does not hold", difference, note)


@dataclass(frozen=True)
class CheckReport:
    model: str
    findings: tuple[Finding, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Nothing that was checked failed, and something was checked."""
        verdicts = [finding.verdict for finding in self.findings]
        return "does not hold" not in verdicts and "holds" in verdicts

    def __str__(self) -> str:
        rows = [(f.law, f.verdict, _written(f.number), f.note) for f in self.findings]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{law:{wide[0]}}  {verdict:{wide[1]}}  {n:>{wide[2]}}  {note}" for law, verdict, n, note in rows]
        head = f"{self.model} (differences relative to the largest value, allowed {self.tolerance:.0e})"
        return "\n".join([head, *map(str.rstrip, lines)])


def _written(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"
