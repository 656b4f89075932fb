"""Two trainings that differ in one thing, compared on fresh questions of several seeds, and a claim about them.

Of each seed: both models are trained on the same rows, and answer questions that no other seed and no earlier
comparison has. Training and comparison continue where they were when the command is given again. `serving_cost` and
`tower_cost` are two such comparisons.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dart_train.common.environment import read_environment
from dart_train.common.statistics import PairedDifference, clustered_interval

from .claim import Cell, Part, Scores, figure, marked, paired, percent, read_lines, scores_of, table_lines
from .demo import Commands, precision, python_command

BASE = "data/tiny_base"


@dataclass(frozen=True)
class TrainedPair:
    """train: name of a checkpoint -> recipe and overrides; `same` are those of both. results: where `--publish` writes.

    parts: of the claim, on the questions of all seeds. first_seed: of the questions. by_image: intervals of differences
    resample images with all of their questions, instead of questions.
    """

    train: Mapping[str, Sequence[str]]
    same: Sequence[str]
    compare: str
    methods: Sequence[Mapping[str, Any]]
    budgets: Sequence[float]
    parts: Sequence[Part]
    shown: Sequence[Cell]
    first_seed: int
    results: Path
    by_image: bool = False

    def run(self, options: argparse.Namespace, commands: Commands) -> list[Path]:
        """The folders of the comparisons."""
        rows = draw_rows(commands, options)
        for seed in range(options.seeds):
            self.train_seed(commands, options, rows, seed)
        return [self.compare_seed(commands, options, seed) for seed in range(options.seeds)]

    def train_seed(self, commands: Commands, options: argparse.Namespace, rows: str, seed: int) -> None:
        for name, (recipe, *changes) in self.train.items():
            folder = run_folder(options.out, name, seed)
            seeds = (f"train.seed={seed}", f"data.seed={seed}", f"train.output_dir={folder}")
            changes = [*self.same, rows, "data.validation=[]", *precision(), *changes, *options.change, *seeds]
            commands.run(f"Train, seed {seed}: {name}", python_command("-m", "dart_train", "train", recipe, *changes))

    def compare_seed(self, commands: Commands, options: argparse.Namespace, seed: int) -> Path:
        """The folder of the comparison."""
        questions, out = options.out / "asked" / str(self.first_seed + seed), options.out / str(seed) / "compare"
        if not (questions / "test.json").is_file():
            drawn = ("--out", str(questions), "--test", str(options.test), "--seed", str(self.first_seed + seed))
            commands.run(f"Draw questions, seed {seed}", python_command("data/shapes.py", *drawn))
        checkpoints = {"base": BASE, **{name: str(run_folder(options.out, name, seed)) for name in self.train}}
        sets = [{"path": str(questions / "test.json"), "images": str(questions / "images"), "name": f"seed {seed}"}]
        overrides = {"checkpoints": checkpoints, "sets": sets, "methods": self.methods, "budgets": self.budgets}
        changes = [f"compare.{key}={json.dumps(value)}" for key, value in overrides.items()]
        changes += ["compare.timing=false", f"compare.output_dir={out}"]
        command = ("-m", "dart_train", "compare", self.compare, *changes)
        commands.run(f"Compare, seed {seed}", python_command(*command))
        return out

    def summarize(self, folders: Sequence[Path], how: str) -> str:
        """The claim and the scores, on the questions of all seeds together and of each."""
        answers = [list(read_lines(folder / "results.jsonl")) for folder in folders]
        together = range(len(folders))
        claim = []
        for part in self.parts:
            found = self.difference(answers, part, together)
            each = [marked(self.difference(answers, part, [seed]), True) for seed in together]
            holds = found.value >= part.least
            claim.append([part.name, f"{100 * part.least:+.0f}", marked(found, holds), "yes" if holds else "no", *each])
        scores = [
            [*each, score(answers, each, together), *(score(answers, each, [s]) for s in together)]
            for each in self.shown
        ]
        seeds = [f"seed {seed}" for seed in together]
        number = self.difference(answers, self.parts[0], together).n
        resampled = "images" if self.by_image else "questions"
        lines = [
            "# The claim",
            "",
            f"Differences in points, question by question, with 95% intervals that resample {resampled}; {number} "
            "questions in all.",
            "",
            *table_lines(["", "at least", "all seeds", "holds", *seeds], claim),
            "",
            *table_lines(["checkpoint", "served at", "budget", "all seeds", *seeds], scores),
            "",
            f"Exact match in percent, 95% intervals; {how}.",
        ]
        return "\n".join(lines) + "\n"

    def difference(self, answers: Sequence[Any], part: Part, seeds: Iterable[int]) -> PairedDifference:
        seeds = list(seeds)
        old, new = (gather(answers, each, seeds) for each in (part.against, part.cell))
        found = paired(old, new)
        if self.by_image:
            low, high = clustered_interval([new[q] - old[q] for q in old], [(q[0], image_of(q[1])) for q in old])
            found = replace(found, low=low, high=high)
        return found

    def publish(self, text: str, folders: Sequence[Path]) -> None:
        (self.results / "trained.md").write_text(text, encoding="utf-8")
        for seed, folder in enumerate(folders):
            shutil.copy(folder / "table.md", self.results / f"trained_seed{seed}.md")


def draw_rows(commands: Commands, options: argparse.Namespace) -> str:
    """The override of `data.train`. Rows that are there are not drawn again."""
    folder = options.out / "shapes"
    if not (folder / "train.json").is_file():
        drawn = python_command("data/shapes.py", "--out", str(folder), "--train", str(options.train), "--group")
        commands.run("Draw images for training", drawn)
    return f"data.train={json.dumps([{'path': str(folder / 'train.json'), 'images': str(folder / 'images')}])}"


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / str(seed) / name.replace(" ", "").replace("=", "")


def image_of(question: str) -> str:
    """The image of a question of `data/shapes.py`, whose id is split-image-kind."""
    return question.rpartition("-")[0]


def gather(answers: Sequence[Any], of: Cell, seeds: Iterable[int]) -> Scores:
    """Scores by set and id; each seed has a set of its own."""
    found: dict[tuple[str, str], float] = {}
    for seed in seeds:
        found |= scores_of(answers[seed], of, f"seed {seed}")
    return found


def score(answers: Sequence[Any], of: Cell, seeds: Iterable[int]) -> str:
    return percent(figure(gather(answers, of, seeds)))


def options_parser(document: str, out: str, test: int, results: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of all that is written")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of training and comparison (3)")
    parser.add_argument("--train", type=int, default=4800, help="images to draw for training (4800)")
    parser.add_argument("--test", type=int, default=test, help=f"images of each seed that are asked about ({test})")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of both training recipes")
    parser.add_argument("--publish", action="store_true", help=f"write the results to {results}")
    return parser


def finish(pair: TrainedPair, options: argparse.Namespace, commands: Commands, folders: Sequence[Path]) -> int:
    """Writes and prints the claim."""
    text = pair.summarize(folders, f"{read_environment().cores} CPU cores, {commands.total:.0f} s")
    (options.out / "claim.md").write_text(text, encoding="utf-8")
    if options.publish:
        pair.publish(text, folders)
    print(text)
    return 0
