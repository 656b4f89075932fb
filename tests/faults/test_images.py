"""Ranks whose batches have different numbers of images, or none: no rank waits for one without images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training.data_feed import TrainFeed
from tests.faults.results import record
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe
from tests.zoo import FAMILIES

pytestmark = [pytest.mark.drill, pytest.mark.deepspeed]
STEPS = 200
SHARED = [f"train.max_steps={STEPS}", "train.per_device_batch_size=1", "train.learning_rate=1e-4"]
MODES = {"lora": [], "full": ["parts.language={mode: full}", "parts.vision={mode: full}"]}
STAGES = (0, 1, 2, 3)


def images_per_rank(recipe: Path) -> list[tuple[int, ...]]:
    """Of each step: how many images each of the two ranks sees."""
    loaded, processor = load_recipe(recipe, SHARED), FAMILIES["llava"].processor()
    rows = json.loads((recipe.parent / "rows.json").read_text())
    feeds = [TrainFeed.open(loaded, RankInfo(rank, 2, 2, False), processor) for rank in (0, 1)]
    names = [[feed.row_ids(step, 0)[0] for feed in feeds] for step in range(STEPS)]
    numbers = [[int(name.removeprefix("rows.json:").split()[0]) for name in each] for each in names]
    return [tuple(len(rows[number].get("image", ())) for number in each) for each in numbers]


def test_no_zero_stage_waits_for_a_rank_without_images(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    counts = images_per_rank(recipe)
    alone = sum(min(each) == 0 < max(each) for each in counts)
    other, none = sum(each[0] != each[1] for each in counts), sum(max(each) == 0 for each in counts)
    assert alone > STEPS / 4 and none > 5
    runs = {f"{mode}-{stage}": [f"train.zero_stage={stage}", *MODES[mode]] for mode in MODES for stage in STAGES}
    jobs = [{"recipe": str(recipe), "overrides": [*SHARED, f"train.output_dir={tmp_path / name}", *changes]}
            for name, changes in runs.items()]  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(tmp_path / "jobs.json"), timeout=10_000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    shown = [line["visual_before"] for line in losses(tmp_path / "lora-0")]
    for name in runs:
        lines = losses(tmp_path / name)
        assert len(lines) == STEPS and all(math.isfinite(line["loss"]) for line in lines), name
        assert [line["visual_before"] for line in lines] == shown, name
    assert len(set(shown)) > 2
    what = f"2 ranks, ZeRO 0 to 3, LoRA and full, {STEPS} steps each: {alone} with images on one rank only, "
    what += f"{other} with different numbers of them, {none} with none at all"
    record("images on some ranks", what, len(runs), "nothing: every run finished, all losses are finite")
