"""data.max_pixels and data.min_pixels of a training: carried by its checkpoints and exports to everything that reads
the model later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dart_train import export, load, train
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.data.dataset import RowDataset
from dart_train.data.encoder import Encoded, visual_token_ids
from dart_train.evaluation.generate import LoadedCheckpoint
from dart_train.evaluation.questions import open_sets, questions_of
from dart_train.exporting import verify, verify_process
from dart_train.models.processors import load_processor
from dart_train.models.prompts import build_inputs, user_message
from dart_train.training.data_feed import TrainFeed
from dart_train.training.run import prepare
from tests.fixtures.run_scene import make_recipe
from tests.zoo import FAMILIES

SIDES = ((220, 140), (57, 203), (64, 64), (16, 16))
LIMITS = {"max": ["data.max_pixels=3000"], "both": ["data.max_pixels=9000", "data.min_pixels=2500"],
          "min": ["data.min_pixels=20000"]}  # fmt: skip


def make_rows(folder: Path) -> str:
    rows = []
    for number, size in enumerate(SIDES):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "this"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "shapes.json").write_text(json.dumps(rows))
    return json.dumps([{"path": str(folder / "shapes.json"), "images": str(folder)}])


def trained_tokens(recipe: Path, *overrides: str) -> list[int]:
    """Visual tokens of each row, as the training reads it."""
    read = load_recipe(recipe, list(overrides))
    processor = load_processor(read.model.path)
    rows = RowDataset(TrainFeed.open(read, RankInfo(0, 1, 1, False), processor).reader)
    found = []
    for number in range(len(rows)):
        row = rows[number]
        assert isinstance(row, Encoded)
        found.append(sum(int((row.features["input_ids"] == i).sum()) for i in visual_token_ids(processor)))
    return found


def prompt_tokens(processor: object, folder: Path) -> list[int]:
    """Visual tokens of the same images, as a user gives them to the processor."""
    found = []
    for number in range(len(SIDES)):
        with Image.open(folder / f"{number}.png") as image:
            ids = build_inputs(processor, [[user_message("what", [image])]])["input_ids"]
        found.append(sum(int((ids == i).sum()) for i in visual_token_ids(processor)))
    return found


@pytest.mark.parametrize("limits", LIMITS)
def test_checkpoint_export_and_compare_have_the_tokens_of_the_training(
    tmp_path: Path, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    recipe, data = make_recipe(tmp_path, "qwen2_5_vl"), make_rows(tmp_path)
    overrides = [f"data.train={data}", *LIMITS[limits], "train.max_steps=1", "train.per_device_batch_size=4"]
    train(recipe, overrides)
    expected = trained_tokens(recipe, *overrides)
    assert expected != prompt_tokens(load_processor(str(tmp_path / "qwen2_5_vl")), tmp_path)
    assert prompt_tokens(load(tmp_path / "run").processor, tmp_path) == expected
    export(tmp_path / "run", tmp_path / "exported")
    assert prompt_tokens(load_processor(str(tmp_path / "exported")), tmp_path) == expected
    compared = load_recipe(recipe, [*overrides, f"compare.sets={data}"])
    checkpoint = LoadedCheckpoint(compared, str(tmp_path / "run"), "cpu")  # type: ignore[arg-type]
    questions = [each for source in open_sets(compared) for each in questions_of(source)]
    ids = [checkpoint.encoder.batch([question])["input_ids"] for question in questions]
    assert [sum(checkpoint.encoder.visual_tokens(each)) for each in ids] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_within_pixel_limits(tmp_path: Path, family: str) -> None:
    """A processor that does not resize to a number of pixels gets smaller images instead."""
    recipe, data = make_recipe(tmp_path, family), make_rows(tmp_path)
    limited = trained_tokens(recipe, f"data.train={data}", "data.max_pixels=3000")
    free = trained_tokens(recipe, f"data.train={data}")
    assert all(few <= many for few, many in zip(limited, free, strict=True))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_limits_that_the_processor_cannot_carry_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    prepare(load_recipe(make_recipe(tmp_path, family), ["data.max_pixels=3000"]), RankInfo(0, 1, 1, False))
    message = "cannot carry them: scale images in the same way when the model is used"
    assert (message in capsys.readouterr().err) == (family == "llava")
