"""Real DeepSpeed, two ranks, one of them with text only: ZeRO-2 and ZeRO-3 train and evaluate to their end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo.folders import save_folder

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def losses(folder, family, stage, checkpointing, out):
    out.mkdir()
    launcher = Path(sys.executable).with_name("deepspeed")
    call = [launcher, "--num_gpus", "2", "--master_port", free_port(), ROOT / "tests/data/dummy_ranks.py"]
    call += [folder, family, stage, "checkpointing" if checkpointing else "plain", out]
    paths = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": paths}
    done = subprocess.run(
        list(map(str, call)), env=environment, cwd=out, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads((out / "losses.json").read_text())


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("family, checkpointing", [("llava", False), ("qwen3_vl", False), ("qwen3_vl", True)])
def test_a_rank_without_pictures_hangs_neither_zero_2_nor_zero_3(tmp_path, family, checkpointing):
    folder = save_folder(family, tmp_path / "model")
    two, three = (losses(folder, family, stage, checkpointing, tmp_path / f"zero{stage}") for stage in (2, 3))
    assert len(two["losses"]) == 5 and two["losses"][3] < two["losses"][0]
    assert three["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert three["norms"] == pytest.approx(two["norms"], rel=1e-3)
