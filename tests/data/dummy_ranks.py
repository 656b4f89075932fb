"""Started by the DeepSpeed launcher on two ranks; the second never gets an image, in training or in evaluation. Runs
one job of a list after the other; rank 0 writes the losses of each."""

import gc
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from dart_train.common.distributed import RankInfo
from dart_train.data.collator import dummy_inputs
from dart_train.hooks.dummy_image import attach_dummy_image
from dart_train.models.processors import load_processor
from tests.zoo import make_batch


def work(model: str, family: str, stage: int, checkpointing: bool, out: str) -> None:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 10000}
    arguments = TrainingArguments(
        output_dir=out, max_steps=4, per_device_train_batch_size=1, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, remove_unused_columns=False, bf16=False,
        train_sampling_strategy="sequential", per_device_eval_batch_size=1, prediction_loss_only=True,
        deepspeed={"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto", "optimizer": ADAM},
    )  # fmt: skip
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    if checkpointing:
        loaded.activation_checkpointing_enable({"use_reentrant": False})
    attach_dummy_image(loaded, dummy_inputs(load_processor(model)))
    # One batch for each rank in turn: rank 0 gets images, rank 1 text only.
    rows = [make_batch(family, (1 - n % 2,), "right", seed=n, labels=True) for n in range(8)]
    trainer = Trainer(loaded, arguments, train_dataset=rows, data_collator=lambda batch: batch[0])
    trainer.train()
    evaluated = trainer.evaluate(rows[:4])["eval_loss"]
    if trainer.is_world_process_zero():
        Path(out).mkdir(exist_ok=True)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        with open(f"{out}/losses.json", "w") as file:
            json.dump({"losses": [*losses, evaluated], "norms": norms}, file)


ADAM = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}

if __name__ == "__main__":
    # Where ranks share a busy core, one may wait minutes for another to start.
    ranks = RankInfo.read()
    ranks.init_process_group(600, ranks.uses_deepspeed(zero_stage=2))
    for job in json.loads(Path(sys.argv[-1]).read_text()):
        work(**job)
        gc.collect()  # transformers uses the DeepSpeed settings that are still alive
    torch.distributed.barrier()
