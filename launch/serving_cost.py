"""What serving before the language model (K = 0) costs against K = 2, for models that were trained for either.

    python -m launch.serving_cost               # three seeds, one process each
    python -m launch.serving_cost --publish     # and data/results/serving

Of each seed: a model trained by `recipes/tiny_serve.yaml` (K = 0, as engines can serve it) and one at K = 2 on the same
rows, with as many steps, the same full-token teacher and the same merging. Both answer questions that no other seed
and no earlier comparison has, and the claim is evaluated on the questions of all seeds together. `train` and `compare`
continue where they were when the command is given again.

The claim was written before any of these models had answered a question, and no setting was chosen on the questions.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dart_train.common.environment import read_environment
from dart_train.common.statistics import PairedDifference

from .claim import Cell, Part, figure, marked, paired, percent, read_lines, scores_of, table_lines
from .demo import Commands, precision, python_command

RESULTS = Path("data/results/serving")
COMPARE = "recipes/compare_serve.yaml"
FIRST_SEED = 201  # of the questions; data/results/serving has what earlier ones were used for
SAME = ("train.max_steps=100", "train.per_device_batch_size=6", "train.zero_stage=0", "log.report_to=[]")
TRAIN = {
    "trained at K = 0": ("recipes/tiny_serve.yaml",),
    "trained at K = 2": (
        "recipes/tiny_dart.yaml", "reduction.merge=nearest", "distill.enabled=true", "distill.teacher=full",
    ),
}  # fmt: skip
K0, K2 = TRAIN
SERVED = {"name": "K = 0", "method": "dart", "layer": 0, "text_pivots": 0, "pivot": "key_min", "per": "image"}
METHODS: list[dict[str, Any]] = [
    {**SERVED, "merge": "nearest", "checkpoints": [K0, K2]},
    {"name": "K = 2", "method": "dart", "layer": 2, "merge": "nearest", "checkpoints": [K2]},
]
BUDGETS = ("0.222", "0.111")


def cell(checkpoint: str, method: str, budget: str) -> Cell:
    return checkpoint, method, budget


PARTS = (
    Part("22.2%, each as trained: K = 0 less K = 2", cell(K0, "K = 0", "0.222"), cell(K2, "K = 2", "0.222"), -0.02),
    Part("11.1%, each as trained: K = 0 less K = 2", cell(K0, "K = 0", "0.111"), cell(K2, "K = 2", "0.111"), -0.04),
    Part(
        "11.1% at K = 0: trained for it, less trained at K = 2",
        cell(K0, "K = 0", "0.111"), cell(K2, "K = 0", "0.111"), 0.01,
    ),
    Part("full tokens: trained at K = 0, less base", cell(K0, "full", "full"), cell("base", "full", "full"), -0.02),
)  # fmt: skip
SHOWN = tuple(
    cell(checkpoint, method, budget)
    for checkpoint in ("base", K0, K2)
    for method, budgets in (("full", ("full",)), ("K = 0", BUDGETS), ("K = 2", BUDGETS))
    for budget in budgets
    if method == "full" or (checkpoint, method) in ((K0, "K = 0"), (K2, "K = 0"), (K2, "K = 2"))
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/serving_cost"), help="folder of all that is written")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of training and comparison (3)")
    parser.add_argument("--train", type=int, default=4800, help="images to draw for training (4800)")
    parser.add_argument("--test", type=int, default=24, help="images of each seed whose questions are compared (24)")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of both training recipes")
    parser.add_argument("--publish", action="store_true", help=f"write the results to {RESULTS}")
    options = parser.parse_args()
    commands = Commands()
    rows = draw_rows(commands, options)
    for seed in range(options.seeds):
        train(commands, options, rows, seed)
    folders = [compare(commands, options, seed) for seed in range(options.seeds)]
    text = summarize(folders, f"{read_environment().cores} CPU cores, {commands.total:.0f} s")
    (options.out / "claim.md").write_text(text, encoding="utf-8")
    if options.publish:
        publish(options.out, folders)
    print(text)
    return 0


def draw_rows(commands: Commands, options: argparse.Namespace) -> str:
    """The override of `data.train`. Rows that are there are not drawn again."""
    folder = options.out / "shapes"
    if not (folder / "train.json").is_file():
        drawn = python_command("data/shapes.py", "--out", str(folder), "--train", str(options.train), "--group")
        commands.run("Draw images for training", drawn)
    return f"data.train={json.dumps([{'path': str(folder / 'train.json'), 'images': str(folder / 'images')}])}"


def train(commands: Commands, options: argparse.Namespace, rows: str, seed: int) -> None:
    for name, (recipe, *changes) in TRAIN.items():
        seeds = (f"train.seed={seed}", f"data.seed={seed}", f"train.output_dir={run_folder(options.out, name, seed)}")
        changes = [*SAME, rows, "data.validation=[]", *precision(), *changes, *options.change, *seeds]
        commands.run(f"Train, seed {seed}: {name}", python_command("-m", "dart_train", "train", recipe, *changes))


def compare(commands: Commands, options: argparse.Namespace, seed: int) -> Path:
    """The folder of the comparison."""
    questions, out = options.out / "asked" / str(FIRST_SEED + seed), options.out / str(seed) / "compare"
    if not (questions / "test.json").is_file():
        drawn = ("--out", str(questions), "--test", str(options.test), "--seed", str(FIRST_SEED + seed))
        commands.run(f"Draw questions, seed {seed}", python_command("data/shapes.py", *drawn))
    checkpoints = {"base": "data/tiny_base", **{name: str(run_folder(options.out, name, seed)) for name in TRAIN}}
    sets = [{"path": str(questions / "test.json"), "images": str(questions / "images"), "name": f"seed {seed}"}]
    overrides = {"checkpoints": checkpoints, "sets": sets, "methods": METHODS, "budgets": list(map(float, BUDGETS))}
    changes = [f"compare.{key}={json.dumps(value)}" for key, value in overrides.items()]
    command = ("-m", "dart_train", "compare", COMPARE, *changes, f"compare.output_dir={out}")
    commands.run(f"Compare, seed {seed}", python_command(*command))
    return out


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / str(seed) / name.replace(" ", "").replace("=", "")


def summarize(folders: Sequence[Path], how: str) -> str:
    """The claim and the scores, on the questions of all seeds together and of each."""
    answers = [list(read_lines(folder / "results.jsonl")) for folder in folders]
    together = range(len(folders))
    claim = []
    for part in PARTS:
        found = difference(answers, part.cell, part.against, together)
        each = [marked(difference(answers, part.cell, part.against, [seed]), True) for seed in together]
        holds = found.value >= part.least
        claim.append([part.name, f"{100 * part.least:+.0f}", marked(found, holds), "yes" if holds else "no", *each])
    scores = [[*each, score(answers, each, together), *(score(answers, each, [s]) for s in together)] for each in SHOWN]
    seeds = [f"seed {seed}" for seed in together]
    number = difference(answers, PARTS[0].cell, PARTS[0].against, together).n
    lines = [
        "# The claim",
        "",
        f"Differences in points, question by question, with 95% intervals; {number} questions in all.",
        "",
        *table_lines(["", "at least", "all seeds", "holds", *seeds], claim),
        "",
        *table_lines(["checkpoint", "served at", "budget", "all seeds", *seeds], scores),
        "",
        f"Exact match in percent, 95% intervals; {how}.",
    ]
    return "\n".join(lines) + "\n"


def difference(answers: Sequence[Any], new: Cell, old: Cell, seeds: Iterable[int]) -> PairedDifference:
    first, second = (gather(answers, each, seeds) for each in (old, new))
    return paired(first, second)


def score(answers: Sequence[Any], of: Cell, seeds: Iterable[int]) -> str:
    return percent(figure(gather(answers, of, seeds)))


def gather(answers: Sequence[Any], of: Cell, seeds: Iterable[int]) -> dict[tuple[str, str], float]:
    """Scores by set and id; each seed has a set of its own."""
    found: dict[tuple[str, str], float] = {}
    for seed in seeds:
        found |= scores_of(answers[seed], of, f"seed {seed}")
    return found


def publish(out: Path, folders: Sequence[Path]) -> None:
    shutil.copy(out / "claim.md", RESULTS / "trained.md")
    for seed, folder in enumerate(folders):
        shutil.copy(folder / "table.md", RESULTS / f"trained_seed{seed}.md")


if __name__ == "__main__":
    raise SystemExit(main())
