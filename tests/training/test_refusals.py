"""Runs that cannot work are refused at once: one message, a non-zero exit code, no weights read before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.models import loading as weights
from dart_train.training.run import prepare
from tests.fixtures.run_scene import ROOT, launch, make_recipe, run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("weights were to be read")

    monkeypatch.setattr(weights.AutoModelForImageTextToText, "from_pretrained", never)


def refused(recipe: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main([str(recipe), *overrides]) == 2
    output = capsys.readouterr().err
    assert output.count("train:") == 1 and "Traceback" not in output
    return output


WRONG = {
    "no such model folder": (["model.path=no/such/folder"], "'no/such/folder' (there is no such folder)"),
    "no such rows": (["data.train=[{path: nowhere.json}]"], "'nowhere.json' does not exist"),
    "no such target": (["parts.lora.targets=[q_porj]"], "no linear layer named q_porj"),
    "a layer too deep": (["reduction={method: dart, keep: 8, layer: 99}"], "the model has 5 layers"),
    "fp16 without a GPU": (["train.precision=fp16"], "fp16 needs a GPU"),
    "flash attention missing": (["model.attn_implementation=flash_attention_2", "model.dtype=bfloat16",
                                 "train.precision=bf16"], "flash_attn, which is not installed"),
    "an impossible offload": (["train.offload_parameters=true", "train.zero_stage=2"], "needs zero_stage 3"),
    "a typing error": (["train.lerning_rate=1"], "did you mean train.learning_rate"),
    "no such checkpoint": (["train.resume=runs/none/checkpoint-3"], "there is no such folder"),
    "streamed validation": (["data.validation=[{path: rows.json, streaming: true}]"], "streaming is for training"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    overrides, message = WRONG[wrong]
    assert message in refused(recipe, capsys, *overrides)


def test_empty_data_set_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    assert "contains no rows" in refused(recipe, capsys, f"data.train=[{{path: {rows}}}]")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 7}}, "stage is 7; expected 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save must be true"),
        ({"zero_optimization": {"stage": 2, "offload_param": {}}}, "offload_param needs stage 3"),
        ({"optimizer": {"type": "AdamW"}}, "leave both out"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_deepspeed_config_that_cannot_work_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: object, message: str
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    assert message in refused(recipe, capsys, f"train.deepspeed={file}")


def test_more_processes_than_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    read = load_recipe(recipe)
    with pytest.raises(ValueError, match="8 processes were started on this machine, which has 2 GPUs"):
        prepare(read, RankInfo(0, 8, 8, False))


def test_resume_never_does_not_overwrite_a_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.checkpoints.test_atomic import make

    make(tmp_path, 5)
    output = refused(recipe, capsys, f"train.output_dir={tmp_path}", "train.resume=never")
    assert "checkpoint-5, which would be overwritten" in output


def test_dry_run_prints_the_plan_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe), f"train.output_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    output = capsys.readouterr().out
    for expected in ("learning_rate: 0.001", "parameters", "language", "steps: 10 of 8 rows (24 rows an epoch",
                     "visual", "supervised", "% of training at full tokens"):  # fmt: skip
        assert expected in output, expected
    assert not (tmp_path / "run").exists()


def test_dry_run_cost_grows_with_keep(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def share(keep: float) -> int:
        reduction = f"reduction={{method: dart, keep: {keep}, layer: 2, schedule: {{kind: fixed}}}}"
        assert main([str(recipe), reduction, "--dry-run"]) == 0
        return int(capsys.readouterr().out.rsplit("%", 1)[0].rsplit(" ", 1)[-1])

    assert share(0.1) < share(0.5) < share(1.0) == 100


@pytest.mark.deepspeed
def test_refusal_on_ranks_is_printed_once(recipe: Path) -> None:
    """A key that is no key is found before torch is imported, which makes this launch a short one."""
    done = launch(ROOT / "launch/train.py", str(recipe), "train.learning_rat=1")
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("did you mean train.learning_rate?") == 1


@pytest.mark.slow
def test_train_help() -> None:
    done = run([sys.executable, "-m", "dart_train", "train", "--help"])
    assert done.returncode == 0 and "--dry-run" in done.stdout


def test_resume_with_another_number_of_rows_in_a_step_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "complete.json").write_text(json.dumps({"ranks": 4, "stage": 3, "files": {}}))
    (folder / "recipe.yaml").write_text("train: {per_device_batch_size: 1, gradient_accumulation_steps: 1}")
    output = refused(recipe, capsys, f"train.output_dir={tmp_path}")
    assert "written with 4 rows in a step (4 ranks x 1 x 1), now 8 (1 ranks x 8 x 1)" in output
