"""The real lmms-eval finds the plug-in, runs local tasks through it and records the model's answers.

Runs where lmms-eval is installed together with this package, which asks for an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dart_train
from dart_train.chat import generate_answers
from dart_train.lmms_eval import NAME
from dart_train.models.prompts import user_message
from tests.fixtures.run_scene import ROOT
from tests.zoo import make_image, save_folder, sentence

HOW = 'its pins are narrower than ours; in an environment of its own: pip install ".[lmms]" pytest'
pytest.importorskip("lmms_eval", reason=f"lmms-eval is not here: {HOW}")

QUESTIONS = 5  # odd, so that correct and wrong answers are never equally many and a swap of both would fail
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function tiny.images
doc_to_text: !function tiny.text
{more}
metadata: [{{version: 0.0}}]
"""
GENERATE = """
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
doc_to_choice: ["red", "the small circle"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
def images(doc):
    return [doc["image"].convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and two tasks of lmms-eval over them."""
    import datasets

    folder = tmp_path_factory.mktemp("scene")
    save_folder("llava", folder / "llava")
    rows = [{"image": make_image(i), "question": sentence(3 + i % 2, i), "answer": "red"} for i in range(QUESTIONS)]
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tiny.py").write_text(FUNCTIONS)
    for name, kind, more in (("tiny_generate", "generate_until", GENERATE), ("tiny_choose", "multiple_choice", CHOOSE)):
        text = TASK.format(name=name, rows=folder / "rows.parquet", kind=kind, more=more)
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    return folder


def evaluate(scene: Path, out: Path, task: str, *more: str, model_args: str = "reducer=dart,keep=8") -> dict[str, Any]:
    """Through the command line of lmms-eval; its samples, as it wrote them."""
    command = [sys.executable, "-m", "lmms_eval", "--model", NAME, "--tasks", task, "--device", "cpu"]
    command += ["--model_args", f"pretrained={scene / 'llava'},{model_args}", "--include_path", str(scene / "tasks")]
    command += ["--output_path", str(out), "--log_samples", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    (samples,) = out.rglob(f"*samples_{task}.jsonl")
    (results,) = out.rglob("*results.json")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {"samples": sorted(rows, key=lambda row: row["doc_id"]), "results": json.loads(results.read_text())}


def answer_of(row: dict[str, Any]) -> str:
    """The answer in a sample, which is written alone or in a list."""
    answer = row["filtered_resps"]
    return str(answer if isinstance(answer, str) else answer[0])


def test_lmms_eval_registry_finds_the_plug_in() -> None:
    from lmms_eval.api.model import lmms
    from lmms_eval.models import get_model, list_available_models

    assert NAME in list_available_models()
    chat, simple = get_model(NAME), get_model(NAME, force_simple=True)
    assert issubclass(chat, lmms) and not chat.is_simple and issubclass(simple, lmms) and simple.is_simple


@pytest.mark.parametrize("more", [[], ["--force_simple"], ["--batch_size", "2"]], ids=["chat", "simple", "batched"])
def test_task_runs_with_the_reduction(scene: Path, tmp_path: Path, more: list[str]) -> None:
    output = evaluate(scene, tmp_path, "tiny_generate", *more)
    loaded = dart_train.load(scene / "llava", {"method": "dart", "keep": 8}, device="cpu")
    conversations = [[user_message(sentence(3 + i % 2, i), [make_image(i)])] for i in range(QUESTIONS)]
    direct = [generate_answers(loaded, [one], max_new_tokens=4)[0] for one in conversations]
    assert [answer_of(row) for row in output["samples"]] == direct
    full = dart_train.load(scene / "llava", reducer=None, device="cpu")
    assert direct != [generate_answers(full, [one], max_new_tokens=4)[0] for one in conversations]


def test_multiple_choice_by_likelihood(scene: Path, tmp_path: Path) -> None:
    from dart_train.lmms_eval.answering import likelihood

    output = evaluate(scene, tmp_path, "tiny_choose", "--force_simple")
    loaded = dart_train.load(scene / "llava", {"method": "dart", "keep": 8}, device="cpu")
    conversations = [[user_message(sentence(3 + i % 2, i), [make_image(i)])] for i in range(QUESTIONS)]
    correct = 0
    for one in conversations:
        weighed = [likelihood(loaded, one, f" {choice}").loss for choice in ("red", "the small circle")]
        correct += weighed[0] < weighed[1]
    assert output["results"]["results"]["tiny_choose"]["acc,none"] == pytest.approx(correct / QUESTIONS)
