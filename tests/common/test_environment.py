"""`env` says what is here and warns about what is known to go wrong; it never tells a secret."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dart_train.__main__ import main
from dart_train.common.environment import Environment, Gpu, read_environment, warnings_for

CALM = Environment(
    python="3.11.7",
    system="Linux",
    cores=8,
    versions={"torch": "2.13.0+cu128", "transformers": "5.23.0", "deepspeed": "0.19.8", "peft": "0.21.2"},
    cuda="12.8",
    gpus=(Gpu("H100", 80.0, (9, 0), True),),
    nvcc="nvcc",
    shared_memory_gib=32.0,
    variables={},
)
CPU = {"gpus": (), "cuda": None, "nvcc": None}
BAD = {
    "tested with 5.23 to": {"versions": {**CALM.versions, "transformers": "4.57.1"}},
    "older than 0.19": {"versions": {**CALM.versions, "deepspeed": "0.16.4"}},
    "builds for different devices": {"versions": {**CALM.versions, "torchvision": "0.28.0+cpu"}},
    "needs an Ampere GPU": {
        "versions": {**CALM.versions, "flash-attn": "2.8"},
        "gpus": (Gpu("T4", 16.0, (7, 5), False),),
    },
    "fp16": {"gpus": (Gpu("T4", 16.0, (7, 5), False),)},
    "no GPU is visible": {"gpus": ()},
    "CUDA compiler": {**CPU, "nvcc": "nvcc"},
    "OMP_NUM_THREADS": CPU,
    "--shm-size": {"shared_memory_gib": 0.06},
    "offload_optimizer": {"nvcc": None},
}


def test_a_sound_machine_is_not_warned() -> None:
    assert warnings_for(CALM) == []


@pytest.mark.parametrize("words", BAD)
def test_a_known_bad_combination_is_told(words: str) -> None:
    assert any(words in line for line in warnings_for(replace(CALM, **BAD[words])))  # type: ignore[arg-type]


def test_the_report_names_versions_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    for name in ("torch", "transformers", "deepspeed", "device", "cores"):
        assert name in told
    assert read_environment().versions["transformers"] in told  # type: ignore[operator]


def test_the_report_can_be_read_by_a_program_and_holds_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    assert main(["env", "--json"]) == 0
    told = capsys.readouterr().out
    assert set(json.loads(told)) >= {"versions", "gpus", "warnings"}
    assert "planted-secret" not in told
