"""Started once by the launcher, trains many recipes one after the other: starting takes longer than training.

    deepspeed tests/train/many.py jobs.json

A job: {"recipe": file, "overrides": [...], "ddp": bool, "forget": [paths to remove first], "poison": [rank, step,
what], "starve": [rank, step, way, note]}. Beside metrics.jsonl each rank writes kept-<rank>.json: which tokens each
step kept; and, where a bad step or a checkpoint that cannot be written ends the run, refused-<rank>.txt."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from dart_train.recipe import load_recipe
from dart_train.train.guard import BadStep
from dart_train.train.ranks import Ranks, part
from dart_train.train.run import build, prepare
from dart_train.train.saving import NotSaved
from tests.train.harm import Starve, poison

JOBS = json.loads(Path(sys.argv[-1]).read_text())


class Kept(TrainerCallback):
    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[str] = []

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        last = self.trainer.attached.last if self.trainer.attached else None
        mask = b"" if last is None else last.kept_visual.numpy().tobytes()
        self.seen.append(hashlib.sha256(mask).hexdigest()[:16])

    on_step_end = on_substep_end


def work(job: dict[str, Any]) -> None:
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    if job.get("ddp"):
        os.environ["TORCHELASTIC_RUN_ID"] = "as torchrun has it"
    recipe = load_recipe(job["recipe"], job["overrides"])
    ranks, folder = Ranks.read(), Path(recipe.train.output_dir)
    if ranks.rank == 0:
        for name in job.get("forget", ()):
            shutil.rmtree(folder / name)
        if job.get("forget"):
            shutil.copy(folder / "metrics.jsonl", folder / "uninterrupted.jsonl")
    dist.barrier()
    prepared, kept = prepare(recipe, ranks), Kept()
    kept.trainer = trainer = build(prepared)
    trainer.add_callback(kept)
    if job.get("poison"):
        poison(trainer, *job["poison"])
    starved = Starve(trainer, *job["starve"][:3], Path(job["starve"][3])) if job.get("starve") else None
    if starved:
        trainer.add_callback(starved)
    refused = None
    try:
        trainer.train(resume_from_checkpoint=None if prepared.resume is None else str(prepared.resume))
    except (BadStep, NotSaved) as error:
        refused = str(error)
    dist.barrier()
    if starved:
        starved.undo()
    dist.barrier()
    if refused:
        (folder / f"refused-{ranks.rank}.txt").write_text(refused)
    (folder / f"kept-{ranks.rank}.json").write_text(json.dumps(kept.seen))
    dist.barrier()


if __name__ == "__main__":
    Ranks.read().meet(load_recipe(JOBS[0]["recipe"], JOBS[0]["overrides"]).train)
    for each in JOBS:
        work(each)
    part()
