"""`train.backend` fsdp2 and ddp on two ranks: the losses, kept tokens, validation and export of one process and of
ZeRO-2; a resumed run equals one that was not interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import dart_train
from dart_train.checkpoints import is_complete
from dart_train.exporting import verify, verify_process
from dart_train.training.callbacks import read_metrics
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import ROOT, launch, losses
from tests.fixtures.runs import logits

pytestmark = pytest.mark.deepspeed
STEPS = 6
LORA = ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=4", "train.gradient_checkpointing=true"]
FULL = ["train.per_device_batch_size=4", "parts.language={mode: full}", "parts.vision={mode: full}",
        "train.learning_rate=1e-4"]  # fmt: skip
BF16 = ["train.precision=bf16"]
DROPOUT = ["parts.lora={rank: 4, dropout: 0.2, dora: true}"]
# Equal to one process, except that their noise (dropout) is drawn by each rank.
EXACT = {
    "lora": LORA,
    "full": FULL,
    "distill": [*LORA, "distill={enabled: true}", "reduction.tower={tolerance: 0.0}"],
}
RESUMED = {
    "full-bf16": [*FULL, *BF16],
    "dropout": ["train.per_device_batch_size=4", "train.gradient_checkpointing=true", *BF16, *DROPOUT],
}
ONE_PROCESS = ["train.per_device_batch_size=8", "train.gradient_accumulation_steps=1"]
COMPARED = ("step", "loss", "grad_norm", "keep", "visual_after", "eval_loss", "eval_accuracy_at_full")


def common(recipe: Path, run: Path, changes: list[str]) -> list[str]:
    rows = json.dumps({"path": str(recipe.parent / "rows.json"), "images": str(recipe.parent / "images"), "limit": 3})
    return [
        f"train.output_dir={run}", f"train.max_steps={STEPS}", "train.save_steps=3", f"data.validation=[{rows}]",
        "train.eval_budgets=[1.0]",
        *changes,
    ]  # fmt: skip


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    jobs: list[Job] = []
    for name, changes in (EXACT | RESUMED).items():
        overrides = [*common(recipe, folder / name, changes), "train.backend=fsdp2"]
        jobs.append({"recipe": str(recipe), "overrides": overrides})
        if name in RESUMED:
            jobs.append({"recipe": str(recipe), "overrides": overrides, "forget": [f"checkpoint-{STEPS}"]})
    overrides = [*common(recipe, folder / "lora-ddp", LORA), "train.backend=ddp"]
    jobs.append({"recipe": str(recipe), "overrides": overrides})
    for name, changes in (("lora", LORA), ("full-bf16", RESUMED["full-bf16"])):
        overrides = common(recipe, folder / f"{name}-zero-2", changes)
        jobs.append({"recipe": str(recipe), "overrides": overrides})
    return jobs


@pytest.fixture(scope="module")
def folder(rank_runs: RankRuns) -> Path:
    """With runs of one process, NAME-alone."""
    for name, changes in EXACT.items():
        alone = common(rank_runs.recipe, rank_runs.folder / f"{name}-alone", changes)
        dart_train.train(rank_runs.recipe, [*alone, *ONE_PROCESS])
    return rank_runs.folder


def of_interest(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: line.get(key) for key in COMPARED} for line in lines if "loss" in line or "eval_loss" in line]


def assert_equal_runs(found: Path, expected: Path, tolerance: float) -> None:
    one, other = (of_interest(read_metrics(run)) for run in (found, expected))
    assert len(one) == len(other) == STEPS + 2
    for name in COMPARED:
        values = [[line[name] for line in lines if line[name] is not None] for lines in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=tolerance), name


@pytest.mark.parametrize("name", EXACT)
def test_fsdp2_trains_like_one_process(folder: Path, name: str) -> None:
    assert_equal_runs(folder / name, folder / f"{name}-alone", 2e-3)


def test_ddp_under_the_deepspeed_launcher_trains_like_one_process(folder: Path) -> None:
    assert_equal_runs(folder / "lora-ddp", folder / "lora-alone", 2e-3)
    complete = json.loads((folder / "lora-ddp" / f"checkpoint-{STEPS}" / "complete.json").read_text())
    assert complete["stage"] is None


@pytest.mark.parametrize(("name", "tolerance"), [("lora", 1e-3), ("full-bf16", 2e-2)])
def test_fsdp2_trains_like_zero_2_and_keeps_the_same_tokens(folder: Path, name: str, tolerance: float) -> None:
    """In bf16 they round differently: as many tokens are kept, but not always the same."""
    zero = folder / f"{name}-zero-2"
    found, expected = losses(folder / name), losses(zero)
    for key in ("loss", "visual_before", "visual_after"):
        values = [[line[key] for line in lines] for lines in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=tolerance if "loss" in key else 0), key
    if name == "full-bf16":
        return
    for rank in (0, 1):
        kept = [json.loads((run / f"kept-{rank}.json").read_text()) for run in (folder / f"{name}", zero)]
        assert kept[0] == kept[1] and len(set(kept[1])) >= STEPS - 1


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted(folder: Path, name: str) -> None:
    before = [json.loads(line) for line in (folder / name / "uninterrupted.jsonl").read_text().splitlines()]
    assert of_interest(read_metrics(folder / name)) == of_interest(before)
    assert [line["step"] for line in losses(folder / name)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("name", ["lora", "full"])
def test_export_has_the_logits_of_the_run(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reduction, and in plain transformers those of one process."""
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    found = []
    for run in (folder / name, folder / f"{name}-alone"):
        dart_train.export(run, tmp_path / run.name)
        found.append(logits(AutoModelForImageTextToText.from_pretrained(tmp_path / run.name, dtype="float32").eval()))
    exported, trained = (dart_train.load(path, device="cpu").model for path in (tmp_path / name, folder / name))
    torch.testing.assert_close(logits(exported), logits(trained), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=2e-2)


def test_checkpoint_has_complete_weights_in_the_dtype_of_the_computation(folder: Path) -> None:
    name, dtype = "full-bf16", torch.bfloat16
    checkpoint = folder / name / f"checkpoint-{STEPS}"
    weights = load_file(checkpoint / "model.safetensors")
    expected = load_file(folder / f"{name}-zero-2" / checkpoint.name / "model.safetensors")
    assert {key: (value.shape, value.dtype) for key, value in weights.items()} == {
        key: (value.shape, dtype) for key, value in expected.items()
    }
    state = torch.load(checkpoint / "fsdp_state.pt", weights_only=True)
    assert {value.dtype for value in state["weights"].values()} == {torch.float32}
    assert is_complete(checkpoint) and json.loads((checkpoint / "complete.json").read_text())["stage"] == "fsdp2"


@pytest.mark.slow
def test_resume_on_three_ranks_continues_with_the_same_losses(rank_runs: RankRuns, tmp_path: Path) -> None:
    """A step has twelve rows: on two ranks 3 x 2, on three 4 x 1."""
    recipe, shape = rank_runs.recipe, ["train.per_device_batch_size={}", "train.gradient_accumulation_steps={}"]
    runs = {}
    for ranks, size, forwards in ((2, 3, 2), (3, 4, 1)):
        given = [*common(recipe, tmp_path / "run", []), "train.backend=fsdp2"]
        given += [shape[0].format(size), shape[1].format(forwards)]
        done = launch(ROOT / "launch/train.py", str(recipe), *given, ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
        runs[ranks] = losses(tmp_path / "run")
        if ranks == 2:
            for file in (tmp_path / "run" / f"checkpoint-{STEPS}").iterdir():
                file.unlink()
            (tmp_path / "run" / f"checkpoint-{STEPS}").rmdir()
    assert len(runs[3]) == STEPS
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in runs[3]] == pytest.approx([line[name] for line in runs[2]], rel=1e-3), name
