"""`python -m launch.publish runs/demo`: the results of a demo, into data/results/demo."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path("data/results/demo")
FASTV_NOTE = (
    "`fastv` reads the attention of the layer before K. While this base was trained, text could not attend to the "
    "image in the first two layers, so that attention says little here; `row: own`, the attention of layer K itself, "
    "is nearly as good as the trained scorer on this base for the same reason."
)
BEGIN, END = "<!-- demo: begin -->", "<!-- demo: end -->"


def publish(folder: Path, root: Path = ROOT) -> None:
    """Replaces all earlier results of the demo."""
    claim = json.loads((folder / "claim.json").read_text(encoding="utf-8"))
    target = root / RESULTS
    for old in [*target.glob("claim.*"), *target.glob("table_seed*.md")]:
        old.unlink()
    for name in ("claim.md", "claim.json"):
        shutil.copy(folder / name, target / name)
    for seed in claim["seeds"]:
        number = seed["seed"]
        cells = (folder / f"seed-{number}" / "compare" / "table.md").read_text(encoding="utf-8")
        (target / f"table_seed{number}.md").write_text(f"{cells.rstrip()}\n\n{FASTV_NOTE}\n", encoding="utf-8")
    _replace(target / "README.md", readme_table(claim))


def readme_table(claim: dict[str, Any]) -> str:
    """One line a seed: the cells of the claim, and whether each part holds."""
    cells = {
        "control, full": "control / full / full",
        "control, DART 11.1%": "control / dart / 0.111",
        "adapted, full": "adapted / full / full",
        "adapted, 11.1%": "adapted / learned / 0.111",
        "adapted, 5.6%": "adapted / learned / 0.056",
        "base, scorer 11.1%": "base / learned / 0.111",
    }
    header = ["seed", *cells, "claim"]
    rows = [header, ["---"] * len(header)]
    for seed in claim["seeds"]:
        scores = [_score(seed["scores"][cell]) for cell in cells.values()]
        missed = [f"{part['name']}: {100 * part['value']:+.1f}" for part in seed["parts"] if not part["holds"]]
        rows.append([str(seed["seed"]), *scores, "holds" if seed["holds"] else f"missed ({'; '.join(missed)})"])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    held, number = sum(seed["holds"] for seed in claim["seeds"]), len(claim["seeds"])
    how = f"The claim held for {held} of {number} seeds. `{claim['command']}`: {claim['took']}, {claim['device']}."
    return "\n".join([*lines, "", how])


def _score(score: dict[str, float]) -> str:
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f}-{100 * score['high']:.1f})"


def _replace(file: Path, table: str) -> None:
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{file}: expected one line {BEGIN} and one line {END}; the table is written between them")
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    changed = re.sub(pattern, lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
    file.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
