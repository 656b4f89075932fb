"""A small comparison: a tiny model, and questions most of which it answers correctly with full tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from dart_train import Learned, attach
from dart_train.checkpoints.scorer_file import split_state_dict, write_scorers
from dart_train.config import Recipe, load_recipe
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.comparison_grid import prepare
from dart_train.evaluation.generate import LoadedCheckpoint
from dart_train.evaluation.questions import Question
from dart_train.evaluation.results import ComparisonResults
from tests.zoo import make_image, save_folder, sentence

RECIPE = """
model: {{path: {folder}/llava, dtype: float32}}
compare:
  methods: [dart, random]
  budgets: [1.0, 8, 0.25]
  sets: [{{path: {folder}/questions.json, images: {folder}/images, name: small}}]
  batch_size: 5
  max_new_tokens: 3
  timing: false
  output_dir: {folder}/out
"""
NUMBER = 14
KINDS = ("colour", "reading")


def make(folder: Path) -> Path:
    """recipe.yaml and all that it names. One question in seven has an answer that the model does not give."""
    (folder / "images").mkdir(parents=True)
    save_folder("llava", folder / "llava")
    _save_scorer(folder / "llava")
    recipe = folder / "compare.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    rows = [_row(folder, number) for number in range(NUMBER)]
    _write(folder, rows)
    for row, answer in zip(rows, answers_of(load_recipe(recipe)), strict=True):
        wrong = int(row["id"]) % 7 == 6
        row["conversations"][1]["value"] = "something else" if wrong else answer
    _write(folder, rows)
    return recipe


def _save_scorer(folder: Path) -> None:
    """Of method learned; a scorer that nothing was taught is as good here as any."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    with attach(model, Learned(keep=16)):
        write_scorers(folder, split_state_dict(model.state_dict())[1], model)


def _row(folder: Path, number: int) -> dict[str, Any]:
    """Questions of different lengths; one without an image."""
    text, names = sentence(2 + number % 5, number), [] if number == 3 else [f"{number}.png"]
    for name in names:
        make_image(number).save(folder / "images" / name)
    turns = [{"from": "human", "value": "<image>\n" * len(names) + text}, {"from": "gpt", "value": "nothing yet"}]
    row = {"id": str(number), "conversations": turns, "kind": KINDS[number % 2]}
    return {**row, "image": names[0]} if names else row


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "questions.json").write_text(json.dumps(rows))


def answers_of(recipe: Recipe) -> list[str]:
    """The answers of the plain model, one by one, with transformers alone."""
    prepared = prepare(recipe, progress=False)
    subject = LoadedCheckpoint(recipe, recipe.model.path, torch.device("cpu"))
    return [plainly(subject.model, subject.processor, question) or "(nothing)" for question in prepared.questions]


@torch.no_grad()
def plainly(model: Any, processor: Any, question: Question, new: int = 3) -> str:
    images = iter(question.media())
    turns = [
        {**turn, "content": [{**part, "image": next(images)} if part["type"] == "image" else part for part in content]}
        for turn in question.messages
        for content in [turn["content"]]
    ]
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    made = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def compare_without_report(recipe: Recipe) -> ComparisonResults:
    """Plots and report take most of the time of a small comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dart_train.evaluation.report.write_report", lambda results: None)
        results = compare(recipe)
    assert results is not None
    return results


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
