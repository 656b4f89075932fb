"""Started by the DeepSpeed launcher on two ranks, of which the second never sees a picture, in training and in
evaluation. Rank 0 writes the losses."""

import json
import sys
from datetime import timedelta

import deepspeed
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from dart_train.attach.dummy_image import attach_dummy_image
from dart_train.data.dummy import dummy_inputs
from dart_train.processors import load_processor
from tests.zoo import make_batch


def main(folder: str, family: str, stage: int, checkpointing: bool, out: str) -> None:
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, timeout=timedelta(seconds=240))
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 10000}
    arguments = TrainingArguments(
        output_dir=out, max_steps=4, per_device_train_batch_size=1, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, remove_unused_columns=False, bf16=False,
        train_sampling_strategy="sequential", per_device_eval_batch_size=1, prediction_loss_only=True,
        deepspeed={"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto", "optimizer": ADAM},
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    attach_dummy_image(model, dummy_inputs(load_processor(folder)))
    # One batch for each rank in turn: rank 0 sees pictures, rank 1 text alone.
    rows = [make_batch(family, (1 - n % 2,), "right", seed=n, labels=True) for n in range(8)]
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=lambda batch: batch[0])
    trainer.train()
    evaluated = trainer.evaluate(rows[:4])["eval_loss"]
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        with open(f"{out}/losses.json", "w") as file:
            json.dump({"losses": [*losses, evaluated], "norms": norms}, file)


ADAM = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}

if __name__ == "__main__":
    _, *words = [word for word in sys.argv if not word.startswith("--local_rank")]
    main(words[0], words[1], int(words[2]), words[3] == "checkpointing", words[4])
