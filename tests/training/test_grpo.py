"""TRL's GRPOTrainer with the reduction: what a rollout kept is what its reference and its update keep."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from trl import GRPOConfig, GRPOTrainer

from dart_train import DART, FastV, attach
from dart_train.hooks import Attached
from tests.zoo import FAMILIES, conversation, save_folder, sentence

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "error:.*answers may influence.*")
FAMILY, PROMPTS = "llava", 4
# For each prompt, by its tokens: which visual tokens were kept, in the order of forwards.
Choices = dict[tuple[int, ...], list[tuple[bool, ...]]]


def prompts() -> Dataset:
    rows = []
    for i in range(PROMPTS):
        messages, images = conversation(1, sentence(3 + i, i), None, i)
        text = [
            {"role": turn["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
            for turn in messages
        ]
        rows.append({"prompt": text, "images": images})
    return Dataset.from_list(rows)


def reward_by_position(completions: list[Any], **_: Any) -> list[float]:
    """Different in a group, else there is no gradient."""
    return [float(i) for i, _ in enumerate(completions)]


def record(model: nn.Module, attached: Attached) -> tuple[Choices, Choices]:
    """Of rollouts, and of the forwards with labels that give log-probabilities; filled while the trainer runs."""
    rollouts, scored = defaultdict(list), defaultdict(list)

    def on_end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        ids, labels, kept = kwargs.get("input_ids"), kwargs.get("labels"), attached.last
        if ids is None or ids.shape[1] == 1 or kept is None:
            return
        for row, (mine, visual) in enumerate(zip(kept.kept_visual, kept.visual, strict=True)):
            prompt = kwargs["attention_mask"][row].bool()
            if labels is not None:
                prompt = prompt & (torch.cumsum(labels[row] != -100, 0) == 0)
            found = rollouts if labels is None else scored
            found[tuple(ids[row][prompt].tolist())].append(tuple(mine[visual].tolist()))

    model.register_forward_hook(on_end, with_kwargs=True)
    return rollouts, scored


@pytest.mark.parametrize(
    ("adapter", "reducer"),
    [(True, DART(keep=0.4)), (False, DART(keep=0.4)), (True, FastV(keep=0.4))],
    ids=["lora-dart", "full-dart", "lora-fastv"],
)
def test_rollout_reference_and_update_keep_the_same_tokens(tmp_path: Path, adapter: bool, reducer: Any) -> None:
    """Weights stay those of the rollout (learning rate 0), else FastV would choose by another attention."""
    save_folder(FAMILY, tmp_path / "model")
    model = type(FAMILIES[FAMILY].model()).from_pretrained(tmp_path / "model")
    attached = attach(model, reducer)
    processor = FAMILIES[FAMILY].processor()
    special = sorted({*processor.image_token_ids, *processor.tokenizer.all_special_ids} - {None})  # random weights
    config = GRPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=4, beta=0.1, learning_rate=0.0, num_iterations=2, steps_per_generation=1,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1,
        gradient_checkpointing=False, seed=0, generation_kwargs={"suppress_tokens": special},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model,
        reward_by_position,
        config,
        train_dataset=prompts(),
        processing_class=processor,
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]) if adapter else None,
    )
    recorded = [record(model, attached)]
    if trainer.ref_model is not None:  # a model of its own, loaded by the trainer
        recorded.append(record(trainer.ref_model, attach(trainer.ref_model, reducer)))
    trainer.train()
    rollouts, scored = recorded[0]
    assert rollouts and scored.keys() == rollouts.keys()
    for prompt, kept in rollouts.items():
        assert len(set(kept)) == 1 and set(scored[prompt]) == set(kept)
        assert 0 < sum(kept[0]) < len(kept[0])
    if not adapter:
        (_, reference) = recorded[1]
        assert reference.keys() == rollouts.keys()
        assert all(set(reference[prompt]) == set(rollouts[prompt]) for prompt in rollouts)
    assert len(trainer.state.log_history) >= 2
    assert any(abs(line.get("grad_norm", 0.0)) > 0 for line in trainer.state.log_history)
