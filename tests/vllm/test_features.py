"""An export, a LoRA adapter, a trained scorer, speculative decoding and the HTTP server, each against this project's
own forward."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

import dart_train
from dart_train import DART, Learned
from dart_train.checkpoints.scorer_file import SCORER_FILE, load_scorers, split_state_dict, write_scorers
from dart_train.hooks import attach
from dart_train.models.structure import SCORERS
from dart_train.vllm_plugin import scorer_weights
from tests.vllm.conftest import ROOT, TOLERANCE, Engine, Expected, assert_same, save_served, vllm_environment
from tests.vllm.scenes import SHAPE_QUESTIONS, draw

TINY_BASE = ROOT / "data/tiny_base"
SERVED = DART(keep=24, layer=0, text_pivots=0, per="image", merge="nearest")
NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(tmp_path_factory.mktemp("images"), [(96, 96), (96, 96), (96, 96)])


def requests_of(expected: Expected, images: list[Path], **more: Any) -> list[dict[str, Any]]:
    return [expected.request(q, [image], **more) for q, image in zip(SHAPE_QUESTIONS, images, strict=True)]


@pytest.mark.vllm
@pytest.mark.slow
def test_export_with_speculative_decoding(engine: Engine, images: list[Path], tmp_path: Path) -> None:
    model = save_served(TINY_BASE, tmp_path / "model", [SERVED])
    folder = dart_train.export(model, tmp_path / "exported", for_engine="vllm")
    loaded = dart_train.load(folder, dtype="float32", device="cpu")
    assert loaded.attached is not None and loaded.attached.reducers == (SERVED,)
    expected = Expected(folder)
    requests = requests_of(expected, images)
    found = engine(folder, [requests], speculative_config=NGRAM)["rounds"][0]
    assert_same(found, expected.answers(requests, SERVED))


@pytest.mark.vllm
@pytest.mark.slow
def test_tensor_parallelism(engine: Engine, images: list[Path], tmp_path: Path) -> None:
    """Two processes, each with half of the heads: both must keep the same tokens."""
    folder = save_served(TINY_BASE, tmp_path / "served", [SERVED])
    expected = Expected(TINY_BASE)
    requests = [*requests_of(expected, images), expected.request(SHAPE_QUESTIONS[0], images[1:3])]
    found = engine(folder, [requests], tensor_parallel_size=2, distributed_executor_backend="mp")["rounds"][0]
    assert_same(found, expected.answers(requests, SERVED))


@pytest.mark.vllm
@pytest.mark.slow
def test_lora_adapter(engine: Engine, images: list[Path], tmp_path: Path) -> None:
    """Of the language model, on the base model; the reduction is the adapter's own."""
    base = AutoModelForImageTextToText.from_pretrained(TINY_BASE, dtype=torch.float32)
    layers = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(base, LoraConfig(r=8, target_modules=layers, init_lora_weights=False))
    adapter = save_served(tmp_path_with(adapted, tmp_path), tmp_path / "adapter", [SERVED])
    expected = Expected(TINY_BASE)
    requests = requests_of(expected, images)
    options = {"enable_lora": True, "max_lora_rank": 8, "hf_overrides": {"dart_reducer": str(adapter)}}
    with_adapter = [{**request, "adapter": str(adapter)} for request in requests]
    found = engine(TINY_BASE, [with_adapter, requests], **options)["rounds"]
    plain = expected.answers(requests, SERVED)
    expected.model = PeftModel.from_pretrained(expected.model, adapter).merge_and_unload().eval()
    answers = expected.answers(requests, SERVED)
    assert any(mine["first"] != other["first"] for mine, other in zip(answers, plain, strict=True))
    assert_same(found[0], answers)
    assert_same(found[1], plain)


def tmp_path_with(adapted: PeftModel, tmp_path: Path) -> Path:
    adapted.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_scorer_file_has_one_name() -> None:
    assert scorer_weights.SCORER_FILE == SCORER_FILE


@pytest.mark.vllm
@pytest.mark.slow
def test_learned_choice(engine: Engine, images: list[Path], tmp_path: Path) -> None:
    reducer = Learned(keep=24, layer=0, per="image", guidance="none", share=0.5)
    folder = save_served(TINY_BASE, tmp_path / "served", [reducer])
    expected = Expected(TINY_BASE)
    with attach(expected.model, reducer):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for weight in getattr(expected.model, SCORERS).parameters():
                weight.data.add_(0.3 * torch.randn_like(weight))
        _, scorers = split_state_dict(expected.model.state_dict())
        write_scorers(folder, scorers, expected.model)
    requests = requests_of(expected, images)
    full = expected.answers(requests)
    load_scorers(folder, expected.model)
    reduced = expected.answers(requests, reducer)
    assert_same(engine(folder, [requests])["rounds"][0], reduced)
    exported = dart_train.export(folder, tmp_path / "exported", for_engine="vllm")
    assert_same(engine(exported, [requests])["rounds"][0], reduced)
    assert_same(engine(exported, [requests], hf_overrides={"dart_reducer": "none"})["rounds"][0], full)


@contextmanager
def server(python: Path, folder: Path, log: Path) -> Iterator[str]:
    """The OpenAI server of vLLM on a free port: its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [
        "--enforce-eager",
        "--dtype",
        "float32",
        "--max-model-len",
        "1024",
        "--max-logprobs",
        "20",
        "--trust-request-mm-kwargs",
    ]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    environment = {**vllm_environment(), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")


def chat(address: str, folder: Path, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One chat completion; its error as {"error": ...}."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + encode(image)}}
        for image in request["images"]
    ]
    body = {
        "model": str(folder),
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": request["question"]}]}],
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 20,
        "return_tokens_as_token_ids": True,
        **more,
    }
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/v1/chat/completions", data, headers)
    try:
        with urllib.request.urlopen(asked, timeout=300) as answer:
            content: dict[str, Any] = json.loads(answer.read())
            return content
    except urllib.error.HTTPError as error:
        return {"status": error.code, "error": error.read().decode()}


def encode(image: str) -> str:
    return base64.b64encode(Path(image).read_bytes()).decode()


@pytest.mark.vllm
@pytest.mark.slow
def test_http(vllm_python: Path, images: list[Path], tmp_path: Path) -> None:
    """Chat completions, budgets of requests included; a budget that was not trained is an error of the client."""
    budgets = dart_train.checkpoints.TrainedBudgets(((24,), (48,)))
    folder = save_served(TINY_BASE, tmp_path / "served", [SERVED], budgets)
    expected = Expected(TINY_BASE)
    requests = requests_of(expected, images)
    requests.append(expected.request(SHAPE_QUESTIONS[0], images[1:3]))
    end = expected.processor.tokenizer.eos_token_id
    with server(vllm_python, folder, tmp_path / "log") as address:
        at_24 = [chat(address, folder, request) for request in requests]
        at_48 = [chat(address, folder, request, mm_processor_kwargs={"dart_keep": 48}) for request in requests]
        refused = chat(address, folder, requests[0], mm_processor_kwargs={"dart_keep": 32})
    assert refused["status"] == 400 and "not at 32 tokens" in refused["error"]
    for keep, found in ((24, at_24), (48, at_48)):
        answers = expected.answers(requests, DART(**{**vars(SERVED), "keep": keep}))
        for mine, right in zip(found, answers, strict=True):
            content = mine["choices"][0]["logprobs"]["content"]
            tokens = [token_of(each) for each in content]
            assert [each for each in tokens if each != end] == [each for each in right["tokens"] if each != end]
            for each in content[0]["top_logprobs"]:
                assert abs(each["logprob"] - right["first"][token_of(each)]) < TOLERANCE


def token_of(entry: dict[str, Any]) -> int:
    return int(entry["token"].removeprefix("token_id:"))
