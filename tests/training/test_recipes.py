"""Every shipped recipe, run for a few steps on a tiny stand-in of its architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import train
from dart_train.config import load_recipe
from tests.fixtures.run_scene import ROOT, losses, make_recipe
from tests.training.preference_scene import PREFERENCE

FAMILY = {
    "tiny_dart": "llava",
    "tiny_tower": "llava",
    "llava_dart": "llava",
    "llava_dart_full": "llava",
    "llava_dart_padding_free": "llava",
    "llava_dart_qlora": "llava",
    "llava_next_dart": "llava_next",
    "qwen2_vl_dart": "qwen2_vl",
    "qwen2_5_vl_dart": "qwen2_5_vl",
    "qwen2_5_vl_dart_video": "qwen2_5_vl",
    "qwen3_vl_dart": "qwen3_vl",
    "qwen3_5_dart": "qwen3_5",
    "internvl_dart": "internvl",
    "tiny_serve": "llava",
    "llava_dart_serve": "llava",
    "qwen2_5_vl_dart_serve": "qwen2_5_vl",
    "llava_scorer": "llava",
    "llava_learned": "llava",
    "llava_learned_together": "llava",
    "tiny_scorer": "llava",
    "real_scorer": "llava",
    "real_dart": "llava",
    "real_learned": "llava",
    "tiny_learned": "llava",
}
SCORER_ALONE = ("llava_scorer", "tiny_scorer", "real_scorer")  # a batch without an image has no gradient
PADDING_FREE = ("llava_dart_padding_free",)  # filled to the tokens of one budget
FILLED = "train.tokens_per_batch=250"
QUANTIZED = ("llava_dart_qlora",)
VIDEO = "qwen2_5_vl_dart_video"
LATE = ("real_learned",)  # its layer is later than the last one of the small model
NEW_SCORER = ("scorer.path=null", "scorer.train=true")  # of recipes that start from a trained one


@pytest.mark.parametrize("name", FAMILY)
def test_shipped_recipe_trains(tmp_path: Path, name: str) -> None:
    """Its model, rows and length of the run exchanged; everything else as it is shipped."""
    if name in QUANTIZED:
        pytest.importorskip("bitsandbytes")
    make_recipe(tmp_path, FAMILY[name])
    if name == VIDEO:
        add_video_rows(tmp_path / "rows.json")
    rows = json.dumps([{"path": str(tmp_path / "rows.json"), "images": str(tmp_path / "images")}])
    recipe = ROOT / "recipes" / f"{name}.yaml"
    changes = [f"model.path={tmp_path / FAMILY[name]}", f"data.train={rows}", "data.validation=[]", "data.workers=0"]
    changes += ["train.max_steps=3", f"train.output_dir={tmp_path / 'run'}", "train.logging_steps=1"]
    changes += [FILLED if name in PADDING_FREE else "train.per_device_batch_size=2"]
    changes += ["train.gradient_accumulation_steps=1", *NEW_SCORER]
    changes += ["reduction.layer=2"] if name in LATE else []
    train(recipe, changes)
    lines = losses(tmp_path / "run")
    assert len(lines) == 3 and all(line["grad_norm"] > 0 or name in SCORER_ALONE for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)
    assert all(line["visual_after"] <= line["visual_before"] for line in lines)


def add_video_rows(file: Path) -> None:
    """Each row with two images has a video of these two frames, too."""
    rows = json.loads(file.read_text())
    for row in rows:
        if len(row.get("image", [])) == 2:
            row["video"] = [row["image"]]
            row["conversations"][0]["value"] = "<video>\n" + row["conversations"][0]["value"]
    file.write_text(json.dumps(rows))


def test_every_shipped_recipe_is_tested() -> None:
    trained = {file.stem for file in (ROOT / "recipes").glob("*.yaml") if "\nreduction:" in file.read_text()}
    assert trained == {*FAMILY, *PREFERENCE}  # the others: training/test_preference_recipes.py


@pytest.mark.parametrize("name", FAMILY)
def test_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", needs=("data.train",))
    assert recipe.reduction.schedule.kind == ("fixed" if name in (*PADDING_FREE, "tiny_tower") else "elastic")
    assert len(recipe.reduction.stages) == 1
