"""Real DeepSpeed, two ranks, one of them with text only: ZeRO-2 and ZeRO-3 train and evaluate to their end."""

import json

import pytest

from tests.fixtures.run_scene import ROOT, launch
from tests.zoo.folders import save_folder

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
CASES = [("llava", False), ("qwen3_vl", False), ("qwen3_vl", True)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The losses of all cases, from one launch: starting the ranks takes longer than training."""
    folder = tmp_path_factory.mktemp("dummy")
    models = {family: str(save_folder(family, folder / family)) for family, _ in CASES}
    jobs = [
        {"model": models[family], "family": family, "stage": stage, "checkpointing": checkpointing,
         "out": str(folder / f"{family}-{checkpointing}-{stage}")}
        for family, checkpointing in CASES
        for stage in (2, 3)
    ]  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/data/dummy_ranks.py", str(folder / "jobs.json"), timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    def of(family, checkpointing, stage):
        return json.loads((folder / f"{family}-{checkpointing}-{stage}" / "losses.json").read_text())

    return of


@pytest.mark.parametrize("family, checkpointing", CASES)
def test_zero_2_and_zero_3_finish_with_a_rank_without_images(results, family, checkpointing):
    two, three = results(family, checkpointing, 2), results(family, checkpointing, 3)
    assert len(two["losses"]) == 5 and two["losses"][3] < two["losses"][0]
    assert three["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert three["norms"] == pytest.approx(two["norms"], rel=1e-3)
