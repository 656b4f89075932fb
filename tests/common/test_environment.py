"""`env` prints versions and devices, warns about known bad combinations, and never prints a secret."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dart_train.__main__ import main
from dart_train.common.environment import Environment, Gpu, read_environment, warnings_for

GOOD = Environment(
    python="3.11.7",
    system="Linux",
    cores=8,
    cpu_bf16=True,
    versions={"torch": "2.13.0+cu128", "transformers": "5.23.0", "deepspeed": "0.19.8", "peft": "0.21.2"},
    cuda="12.8",
    gpus=(Gpu("H100", 80.0, (9, 0), True),),
    nvcc="nvcc",
    shared_memory_gib=32.0,
    variables={},
)
CPU = {"gpus": (), "cuda": None, "nvcc": None}
BAD = {
    "tested with 5.23 to": {"versions": {**GOOD.versions, "transformers": "4.57.1"}},
    "older than 0.19": {"versions": {**GOOD.versions, "deepspeed": "0.16.4"}},
    "builds for different devices": {"versions": {**GOOD.versions, "torchvision": "0.28.0+cpu"}},
    "needs an Ampere GPU": {
        "versions": {**GOOD.versions, "flash-attn": "2.8"},
        "gpus": (Gpu("T4", 16.0, (7, 5), False),),
    },
    "fp16": {"gpus": (Gpu("T4", 16.0, (7, 5), False),)},
    "no GPU is visible": {"gpus": ()},
    "CUDA compiler": {**CPU, "nvcc": "nvcc"},
    "OMP_NUM_THREADS": CPU,
    "emulates bfloat16": {**CPU, "cpu_bf16": False},
    "--shm-size": {"shared_memory_gib": 0.06},
    "offload_optimizer": {"nvcc": None},
}


def test_no_warning_on_a_good_machine() -> None:
    assert warnings_for(GOOD) == []


@pytest.mark.parametrize("words", BAD)
def test_known_bad_combination_is_reported(words: str) -> None:
    assert any(words in line for line in warnings_for(replace(GOOD, **BAD[words])))  # type: ignore[arg-type]


def test_env_prints_versions_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    for name in ("torch", "transformers", "deepspeed", "device", "cores"):
        assert name in output
    assert read_environment().versions["transformers"] in output  # type: ignore[operator]


def test_env_json_has_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    assert main(["env", "--json"]) == 0
    output = capsys.readouterr().out
    assert set(json.loads(output)) >= {"versions", "gpus", "warnings"}
    assert "planted-secret" not in output
