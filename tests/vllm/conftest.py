"""What the tests of the vLLM plug-in share: its environment, engines in it, and answers to compare with."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from dart_train import Reducer, attach
from dart_train.models.processors import load_processor
from dart_train.models.prompts import build_inputs, render, user_message
from dart_train.reduction.reducer_file import write_reducers
from dart_train.reduction.trained_budgets import TrainedBudgets

ROOT = Path(__file__).parents[2]
JOB = Path(__file__).with_name("engine_job.py")
PYTHON = Path(os.environ.get("DART_TRAIN_VLLM_PYTHON", ROOT / ".venvs/vllm/bin/python"))
TOLERANCE = 1e-4  # of the first token's log-probabilities, in float32
Request = dict[str, Any]
Engine = Callable[..., dict[str, Any]]
Processed = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    if not PYTHON.is_file():
        pytest.skip(f"{PYTHON} is missing: bash launch/test.sh --vllm makes it, and runs these tests")
    return PYTHON


@pytest.fixture
def engine(vllm_python: Path, tmp_path: Path) -> Engine:
    """Starts an engine on a model and asks it: `engine(folder, [[request, ...], ...], **options of vllm.LLM)`."""

    def ask(folder: Path, rounds: Sequence[Sequence[Request]], **options: Any) -> dict[str, Any]:
        result = run_job(vllm_python, tmp_path, {"model": str(folder), "engine": options, "rounds": rounds})
        assert "refused" not in result, result["refused"]
        return result

    return ask


@pytest.fixture
def processed(vllm_python: Path, tmp_path: Path) -> Processed:
    """The inputs of requests as the processor makes them in vLLM's environment: `processed(folder, requests)`."""

    def process(folder: Path, requests: Sequence[Request]) -> list[dict[str, Any]]:
        out = tmp_path / "inputs.pt"
        run_job(vllm_python, tmp_path, {"model": str(folder), "process": requests, "out": str(out)})
        inputs: list[dict[str, Any]] = torch.load(out)
        return inputs

    return process


def run_job(python: Path, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What engine_job.py wrote for a job."""
    given, result = folder / "job.json", folder / "result.json"
    given.write_text(json.dumps(job))
    done = subprocess.run(
        [str(python), str(JOB), str(given), str(result)],
        env=vllm_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def vllm_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def save_served(
    base: Path, folder: Path, reducers: Sequence[Reducer], budgets: TrainedBudgets | None = None, **trained: Any
) -> Path:
    """A folder with the files of `base` and this reducer.json."""
    folder.mkdir()
    for file in base.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    write_reducers(folder, reducers, budgets=budgets, **trained)
    return folder


class Expected:
    """Answers of this project's own forward, in float32."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = load_processor(str(folder))

    def request(self, question: str, images: Sequence[Path] = (), frames: Sequence[Path] = (), **more: Any) -> Request:
        """For the engine, with the prompt that the chat template makes."""
        request = {"question": question, "images": list(map(str, images)), "frames": list(map(str, frames)), **more}
        return {**request, "prompt": render(self.processor, self._conversation(request))}

    def tokens_before_image(self, image: Path, **more: Any) -> int:
        request = self.request("", [image], **more)
        ids = build_inputs(self.processor, [self._conversation(request)])["input_ids"][0]
        return int((ids == self.model.config.image_token_id).nonzero()[0])

    def _conversation(self, request: Request) -> list[Any]:
        user = user_message(request["question"], self._visuals(request["images"], request["frames"]))
        system = [{"role": "system", "content": request["system"]}] if "system" in request else []
        return [*system, user]

    def answers(
        self, requests: Sequence[Request], *reducers: Reducer, inputs: Sequence[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """inputs: those of each request, where they are not to be made here."""
        made = [self._inputs(request) for request in requests] if inputs is None else inputs
        with attach(self.model, list(reducers)) if reducers else nullcontext():
            return [self._answer(each, request) for each, request in zip(made, requests, strict=True)]

    def _visuals(self, images: Sequence[Any], frames: Sequence[Any]) -> list[Any]:
        video = [open_image(file) for file in frames]
        return [*map(open_image, images), *([video] if video else [])]

    def _inputs(self, request: Request) -> dict[str, Any]:
        return build_inputs(self.processor, [self._conversation(request)])

    @torch.no_grad()
    def _answer(self, inputs: dict[str, Any], request: Request) -> dict[str, Any]:
        output = self.model.generate(
            **inputs,
            max_new_tokens=request.get("max_tokens", 6),
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        length = inputs["input_ids"].shape[1]
        first = output.logits[0][0].float().log_softmax(-1)
        return {"tokens": output.sequences[0, length:].tolist(), "first": first.tolist(), "length": length}


def open_image(file: str | Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def assert_same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """The same greedy tokens, and first-token log-probabilities within the tolerance."""
    assert len(found) == len(expected)
    for mine, right in zip(found, expected, strict=True):
        assert "error" not in mine, mine
        assert mine["tokens"] == right["tokens"]
        differences = [abs(value - right["first"][int(token)]) for token, value in mine["first"].items()]
        assert max(differences) < TOLERANCE
