"""Every registered method on two question sets with their own metrics; and a LoRA run next to its base model."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from dart_train.config import load_recipe
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.comparison_grid import prepare
from dart_train.evaluation.generate import LoadedCheckpoint
from dart_train.models.resize import accept_smaller_images, fewer_pixels
from dart_train.reduction import REDUCERS
from tests.evaluation import scene
from tests.fixtures.runs import Runs

ASKED, TOKENS = 4, 64


@pytest.fixture(scope="module")
def compared(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("registry") / "out"
    rows, images = done / "questions.json", done / "images"
    sets = [
        f"{{path: {rows}, images: {images}, name: one, limit: {ASKED}, metrics: [exact_match, vqa]}}",
        f"{{path: {rows}, images: {images}, name: other, limit: {ASKED}, kind_metrics: {{reading: [anls]}}}}",
    ]
    more = [f"compare.methods=[{', '.join(REDUCERS)}]", "compare.budgets=[16]", f"compare.sets=[{', '.join(sets)}]",
            "compare.metrics=[contains]", "compare.timing=true", "compare.timing_repeats=1"]  # fmt: skip
    compare(load_recipe(done / "compare.yaml", [*more, f"compare.output_dir={out}"]))
    return out


def test_every_method_answers_every_set(compared: Path) -> None:
    lines = scene.lines(compared)
    found = [(line["method"], line["set"], line["id"]) for line in lines]
    assert found == [(m, s, str(i)) for m in ("full", *REDUCERS) for s in ("one", "other") for i in range(ASKED)]
    for line in lines:
        shown = 0 if line["id"] == "3" else TOKENS
        kept = shown if line["method"] in ("full", "keep_all") else min(16, shown)
        assert (line["visual_tokens"], line["kept"]) == (shown, kept), line["method"]


def test_every_method_has_its_cost(compared: Path) -> None:
    with (compared / "cost.csv").open(newline="") as file:
        costs = {row["method"]: row for row in csv.DictReader(file)}
    assert list(costs) == ["full", *REDUCERS]
    full = int(costs["full"]["kv_bytes"])
    for name, row in costs.items():
        assert float(row["total"]) > 0 and (int(row["kv_bytes"]) < full) == (name not in ("full", "keep_all"))


def test_each_set_and_kind_has_its_own_metrics(compared: Path) -> None:
    with (compared / "table.csv").open(newline="") as file:
        found = {(row["set"], row["kind"], row["metric"]) for row in csv.DictReader(file)}
    assert found == {
        *(("one", kind, metric) for kind in ("all", *scene.KINDS) for metric in ("exact_match", "vqa")),
        ("other", "all", "contains"), ("other", "colour", "contains"), ("other", "reading", "anls"),
    }  # fmt: skip


def test_report_shows_regressions_of_every_set(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    shown = page[page.index('id="regressions"') :]
    for name in ("one", "other"):
        assert re.search(rf'<h3>base, {name}</h3><div class="cards">\s*<article', shown)


def test_fewer_pixels_answers_equal_those_of_its_processor(done: Path, compared: Path) -> None:
    recipe = load_recipe(done / "compare.yaml", [f"compare.sets.0.limit={ASKED}"])
    subject = LoadedCheckpoint(recipe, recipe.model.path, torch.device("cpu"))
    small = fewer_pixels(subject.processor, 16)
    with accept_smaller_images(subject.model):
        answers = [scene.plainly(subject.model, small, each) for each in prepare(recipe, progress=False).questions]
    here = [line for line in scene.lines(compared) if (line["method"], line["set"]) == ("fewer_pixels", "one")]
    assert [line["prediction"] for line in here] == answers


def test_lora_run_next_to_its_base(done: Path, runs: Runs, tmp_path: Path) -> None:
    run = runs("lora")
    more = [f"compare.checkpoints={{base: {run.parent / 'llava'}, tuned: {run}}}", f"compare.output_dir={tmp_path}/out",
            "compare.budgets=[0.25]", f"compare.sets.0.limit={ASKED}", "compare.methods=[dart]"]  # fmt: skip
    results = scene.compare_without_report(load_recipe(done / "compare.yaml", more))
    base = AutoModelForImageTextToText.from_pretrained(run.parent / "llava")
    tuned = PeftModel.from_pretrained(base, run / "checkpoint-4").eval()
    processor, questions = results.prepared.found["tuned"].processor, results.prepared.questions
    full = [line for line in results.records if line["method"] == "full"]
    expected = [scene.plainly(tuned, processor, question) for question in questions]
    assert [line["prediction"] for line in full if line["checkpoint"] == "tuned"] == expected
    assert [line["prediction"] for line in full if line["checkpoint"] == "base"] != expected
    pairs = {(pair.first[0], pair.second[0], pair.first[1]) for pair in results.pairs}
    assert {("base", "tuned", "full"), ("base", "tuned", "dart")} <= pairs
