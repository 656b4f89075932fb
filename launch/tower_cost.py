"""Half of the vision tower and then DART, against DART alone at the same cost, for models that were trained for either.

    python -m launch.tower_cost               # three seeds, one process each
    python -m launch.tower_cost --publish     # and data/results/tower

Of each seed: a model trained by `recipes/tiny_tower.yaml` (the tower on half of its units, then DART at 22.2%), and one
on the same rows, with as many steps, for DART alone with as many tokens as cost the same: 18 of 144, by the operations
of a prefill. Both answer questions that no other seed and no earlier comparison has. `train` and `compare` continue
where they were when the command is given again. The time of both ways is measured on the base, in turns.

The claim was written before any of these models had answered a test question. The settings of each training were chosen
on validation questions.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

from .claim import Cell, Part, table_lines
from .demo import Commands, python_command
from .trained_pair import BASE, TrainedPair, finish, options_parser

RESULTS = Path("data/results/tower")
RECIPE, COMPARE = "recipes/tiny_tower.yaml", "recipes/compare.yaml"
FIRST_SEED = 401  # of the questions
HALF, ALONE = "half of the tower", "DART alone"
KEPT, SAME_COST = 32, 18  # of 144 tokens: after half of the tower, and alone
SAME = ("log.report_to=[]",)
TRAIN = {
    HALF: (RECIPE,),
    ALONE: (RECIPE, f"reduction.keep={SAME_COST}", "reduction.tower=null"),
}
TOWER = {"layer": 0, "keep": 0.5}
METHODS: list[dict[str, Any]] = [
    {"name": HALF, "method": "dart", "layer": 2, "tower": TOWER, "budgets": [KEPT], "checkpoints": ["base", HALF]},
    {"name": ALONE, "method": "dart", "layer": 2, "budgets": [SAME_COST], "checkpoints": ["base", ALONE]},
    {"name": "DART, entire tower", "method": "dart", "layer": 2, "budgets": [KEPT], "checkpoints": ["base", ALONE]},
]
TRAINED: tuple[Cell, Cell] = ((HALF, HALF, str(KEPT)), (ALONE, ALONE, str(SAME_COST)))
UNTRAINED: tuple[Cell, Cell] = (("base", HALF, str(KEPT)), ("base", ALONE, str(SAME_COST)))
PARTS = (
    Part("trained: DART alone less half of the tower", TRAINED[1], TRAINED[0], 0.0),
    Part("DART alone: trained less untrained", TRAINED[1], UNTRAINED[1], 0.05),
    Part("half of the tower: trained less untrained", TRAINED[0], UNTRAINED[0], 0.0),
)
SHOWN: tuple[Cell, ...] = (
    ("base", "full", "full"), *UNTRAINED, ("base", "DART, entire tower", str(KEPT)),
    *TRAINED, (ALONE, "DART, entire tower", str(KEPT)), (HALF, "full", "full"), (ALONE, "full", "full"),
)  # fmt: skip
PAIR = TrainedPair(
    train=TRAIN,
    same=SAME,
    compare=COMPARE,
    methods=METHODS,
    budgets=[KEPT],
    parts=PARTS,
    shown=SHOWN,
    first_seed=FIRST_SEED,
    results=RESULTS,
    by_image=True,
)
TIMED_QUESTIONS = 64  # 32 of them in a batch
TIMED = "A batch of 32 questions, median (quartiles) of 25 interleaved rounds on the base; the bound counts operations."


def main() -> int:
    options, commands = options_parser(__doc__ or "", "runs/tower_cost", 60, RESULTS).parse_args(), Commands()
    folders = PAIR.run(options, commands)
    timed = measure_time(commands, options)
    code = finish(PAIR, options, commands, folders)
    text = "\n".join(time_table(timed))
    print(text)
    if options.publish:
        (RESULTS / "time.md").write_text(f"# The time of both ways\n\n{text}\n\n{TIMED}\n", encoding="utf-8")
        shutil.copy(timed / "cost.csv", RESULTS / "cost.csv")
    return code


def measure_time(commands: Commands, options: argparse.Namespace) -> Path:
    """A comparison on the base with the time of a batch of 32, in interleaved rounds."""
    questions, out = options.out / "asked" / str(FIRST_SEED), options.out / "time"
    methods = [{key: value for key, value in method.items() if key != "checkpoints"} for method in METHODS]
    sets = [
        {"path": str(questions / "test.json"), "images": str(questions / "images"), "limit": TIMED_QUESTIONS}
        | {"name": "timed", "metrics": ["exact_match"]}
    ]
    overrides = {"checkpoints": {"base": BASE}, "sets": sets, "methods": methods, "budgets": [KEPT]}
    changes = [f"compare.{key}={json.dumps(value)}" for key, value in overrides.items()]
    changes += ["compare.timing_batch_size=32", "compare.timing_repeats=25", f"compare.output_dir={out}"]
    commands.run("Time", python_command("-m", "dart_train", "compare", COMPARE, *changes))
    return out


def time_table(folder: Path) -> list[str]:
    with (folder / "cost.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        [
            line["method"],
            str(int(line["kept"]) // int(line["rows"])),
            *(times(line, phase) for phase in ("prefill", "total")),
            bound(line),
        ]
        for line in lines
    ]
    answer = f"answer of {lines[0]['new_tokens']} tokens, times faster"
    header = ["", "visual tokens", "prefill, times faster", answer, "bound of the prefill"]
    return table_lines(header, rows)


def times(line: dict[str, str], phase: str) -> str:
    middle, low, high = (float(line[f"faster_{phase}{end}"]) for end in ("", "_q1", "_q3"))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def bound(line: dict[str, str]) -> str:
    return f"{float(line['bound']):.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
