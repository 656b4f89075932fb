"""Training in one process: the files of a run, its resume, and the plain trainer that it equals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from dart_train import DART, from_config, train
from dart_train.checkpoints import is_complete, read_reducers
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.data.collator import Collator
from dart_train.data.dataset import RowDataset
from dart_train.data.sampler import RankBatchSampler
from dart_train.training.callbacks import read_metrics
from dart_train.training.data_feed import TrainFeed
from tests.fixtures.run_scene import losses, make_recipe
from tests.zoo import FAMILIES

FULL = ["parts.vision={mode: full}", "parts.language={mode: full}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


def go(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    train(recipe, [f"train.output_dir={run}", "train.per_device_batch_size=2", "train.max_steps=6", *overrides])
    return losses(run)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    names = ("adapter_model.safetensors", "model.safetensors")
    return load_file(next(checkpoint / name for name in names if (checkpoint / name).exists()))


def test_run_folder_and_checkpoint_files(recipe: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path, "train.save_steps=3")
    assert {path.name for path in tmp_path.iterdir()} == {
        "recipe.yaml", "versions.json", "base.json", "rows.json", "metrics.jsonl", ".lock", "checkpoint-3",
        "checkpoint-6",
    }  # fmt: skip
    last = tmp_path / "checkpoint-6"
    assert is_complete(last) and not list(last.glob("*.bin"))
    for name in ("adapter_config.json", "processor_config.json", "tokenizer.json", "recipe.yaml", "versions.json"):
        assert (last / name).exists(), name
    assert read_reducers(last) == [DART(keep=0.25, layer=2)]
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(last / "recipe.yaml")
    assert json.loads((tmp_path / "versions.json").read_text())["torch"] == torch.__version__


def test_metrics_of_each_step(recipe: Path, tmp_path: Path) -> None:
    lines = go(recipe, tmp_path, "train.save_steps=100")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["visual_after"] <= line["visual_before"]
        for name in ("grad_norm", "lr_projector", "lr_language", "tokens_per_second", "samples_per_second",
                     "step_seconds", "peak_memory_gib"):  # fmt: skip
            assert line[name] > 0, name
        assert 0 < line["selector_share"] < 1
        assert line["data_wait_seconds"] > 0 and line["epoch"] == pytest.approx(line["step"] * 2 / 24)
    assert len({line["keep"] for line in lines}) > 1 and {line["skipped_rows"] for line in lines} == {0}


@pytest.mark.parametrize("changes", [[], FULL], ids=["lora", "full"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_equals_uninterrupted(recipe: Path, tmp_path: Path, changes: list[str], accumulation: int) -> None:
    """With dropout, in the middle of an epoch, and across its end."""
    more = [*changes, "parts.lora={rank: 4, dropout: 0.3}", "train.save_steps=4", "train.max_steps=8"]
    more += [f"train.gradient_accumulation_steps={accumulation}", "train.per_device_batch_size=4"]
    uninterrupted = go(recipe, tmp_path, *more)
    before = weights(tmp_path / "checkpoint-8")
    shutil.rmtree(tmp_path / "checkpoint-8")
    again = go(recipe, tmp_path, *more)
    for name in ("step", "loss", "grad_norm", "keep", "visual_after", "lr_language", "epoch"):
        assert [line[name] for line in again] == [line[name] for line in uninterrupted], name
    after = weights(tmp_path / "checkpoint-8")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_resume_of_a_finished_run_does_nothing(recipe: Path, tmp_path: Path) -> None:
    first = go(recipe, tmp_path, "train.save_steps=6")
    assert go(recipe, tmp_path, "train.save_steps=6") == first


def test_resume_skips_a_damaged_checkpoint(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted = go(recipe, tmp_path, "train.save_steps=2")
    (tmp_path / "checkpoint-6" / "optimizer.pt").write_bytes(b"cut")
    again = go(recipe, tmp_path, "train.save_steps=2")
    message = capsys.readouterr().err
    assert "skipping incomplete checkpoint-6: " in message and "resumed from checkpoint-4, after step 4" in message
    assert [line["loss"] for line in again] == [line["loss"] for line in uninterrupted]


def test_resume_with_only_damaged_checkpoints_is_refused(recipe: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path, "train.save_steps=3")
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="each of its checkpoints is damaged") as error:
        go(recipe, tmp_path, "train.save_steps=3")
    for part in ("checkpoint-3: not of the size", "checkpoint-6: not of the size", "train.resume=never"):
        assert part in str(error.value)
    assert losses(tmp_path)[-1]["step"] == 6
    assert go(recipe, tmp_path, "train.save_steps=3", "train.resume=never")[0]["step"] == 1


@pytest.mark.parametrize("changes", [[], ["train.gradient_checkpointing=true"]], ids=["plain", "checkpointing"])
def test_gradient_accumulation_equals_one_large_batch(recipe: Path, tmp_path: Path, changes: list[str]) -> None:
    """Normalised over all targets of a step, although answers differ in length."""
    big = go(recipe, tmp_path / "big", "train.per_device_batch_size=4", *changes)
    split = ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=4"]
    small = go(recipe, tmp_path / "small", *split, *changes)
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in small] == pytest.approx([line[name] for line in big], rel=1e-3)


class RecordedLogs(TrainerCallback):
    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.lines.append(logs)


@pytest.mark.parametrize("reduction", ["{method: keep_all, schedule: {kind: fixed}}", "none"])
def test_keep_all_equals_the_plain_trainer(recipe: Path, tmp_path: Path, reduction: str) -> None:
    """Hugging Face's Trainer on the same rows in the same order, with no code of ours in it."""
    ours = go(recipe, tmp_path / "ours", f"reduction={reduction}", *FULL)
    read = load_recipe(recipe, ["train.max_steps=6", "train.per_device_batch_size=2"])
    model, processor, logs = FAMILIES["llava"].model(), FAMILIES["llava"].processor(), RecordedLogs()
    feed = TrainFeed.open(read, RankInfo(0, 1, 1, False), processor)
    assert feed.order is not None
    rows = [number for batch in RankBatchSampler(feed.order, 2, 6) for number in batch]
    encoded = [RowDataset(feed.reader)[number] for number in rows]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-3,
        lr_scheduler_type="cosine", logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    Trainer(model, arguments, Collator(processor), encoded, callbacks=[logs]).train()
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in logs.lines], rel=1e-3), name


@pytest.mark.parametrize("method", ["dart", "fastv", "random", "pooling", "uniform", "balance"])
def test_every_method_trains(recipe: Path, tmp_path: Path, method: str) -> None:
    from_config({"method": method, "keep": 0.25})
    lines = go(recipe, tmp_path, f"reduction={{method: {method}, keep: 0.25, schedule: {{kind: fixed}}}}",
               "train.max_steps=2")  # fmt: skip
    assert all(line["visual_after"] < line["visual_before"] for line in lines if line["visual_before"])


def test_validation_at_every_budget(recipe: Path, tmp_path: Path) -> None:
    rows = json.dumps({"path": str(recipe.parent / "rows.json"), "images": str(recipe.parent / "images"), "limit": 5})
    more = [f"data.validation=[{rows}]", "train.eval_steps=3", "train.save_steps=3", "train.best_metric=loss"]
    go(recipe, tmp_path, *more, "train.eval_budgets=[1.0, 0.5, 4]")
    validations = [line for line in read_metrics(tmp_path) if "eval_loss" in line]
    assert [line["step"] for line in validations] == [3, 6]
    for suffix in ("", "_at_full", "_at_0.5", "_at_4"):
        assert all(line[f"eval_loss{suffix}"] > 0 for line in validations)
        assert all(0 <= line[f"eval_accuracy{suffix}"] <= 1 for line in validations)
    assert all(line["eval_loss_at_full"] != line["eval_loss_at_4"] for line in validations)
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == tmp_path


def test_distillation_loss_is_zero_if_teacher_and_student_keep_the_same(recipe: Path, tmp_path: Path) -> None:
    full = ["reduction={method: dart, keep: 1.0, schedule: {kind: fixed}}", "train.max_steps=2"]
    lines = go(recipe, tmp_path / "same", *full, "distill={enabled: true, teacher: full}")
    assert [line["distill_loss"] for line in lines] == pytest.approx([0, 0], abs=1e-5)
    assert [line["loss"] for line in lines] == pytest.approx([line["answer_loss"] / 2 for line in lines], rel=1e-4)


def test_distillation_loss_is_mixed_by_alpha(recipe: Path, tmp_path: Path) -> None:
    more = ["reduction={method: dart, keep: 0.1, schedule: {kind: fixed}}", "train.max_steps=3"]
    lines = go(recipe, tmp_path, *more, "distill={enabled: true, alpha: 0.3}")
    for line in lines:
        assert line["distill_loss"] > 1e-3
        assert line["loss"] == pytest.approx(0.3 * line["distill_loss"] + 0.7 * line["answer_loss"], rel=1e-4)


def test_teacher_at_a_later_layer_has_the_budget_of_the_step(recipe: Path, tmp_path: Path) -> None:
    """At full tokens it is the student."""
    student = (
        "reduction={method: dart, keep: 0.1, layer: 0, per: image, schedule: {kind: elastic, choices: [1.0, 0.1]}}"
    )
    teacher = "distill={enabled: true, teacher: reduction, reduction: {method: dart, layer: 2, merge: nearest}}"
    lines = go(recipe, tmp_path, student, teacher, "train.max_steps=6")
    assert {line["keep"] for line in lines} == {0.1, 1.0}
    assert all((line["distill_loss"] > 1e-4) == (line["keep"] < 1) for line in lines)


def test_bad_row_is_counted_and_training_continues(recipe: Path, tmp_path: Path) -> None:
    rows = json.loads((recipe.parent / "rows.json").read_text())
    rows[3]["conversations"] = []
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    source = json.dumps([{"path": str(file), "images": str(recipe.parent / "images")}])
    more = ["train.max_steps=24", "train.per_device_batch_size=1", "data.max_bad_fraction=0.1"]
    lines = go(recipe, tmp_path / "run", f"data.train={source}", *more)
    assert lines[-1]["skipped_rows"] == 1 and lines[-1]["step"] == 24
    assert sum(line["loss"] == 0 for line in lines) == 1


def test_nan_loss_ends_the_run_before_it_is_saved(recipe: Path, tmp_path: Path) -> None:
    more = ["train.learning_rate=1e30", "train.max_grad_norm=0", "train.save_steps=1", "train.logging_steps=1"]
    with pytest.raises(ValueError, match="loss is nan at step"):
        go(recipe, tmp_path, *more, *FULL)
    kept = [path for path in tmp_path.glob("checkpoint-*") if is_complete(path)]
    assert len(kept) < 6 and not any(tmp_path.glob(".checkpoint-*"))
