"""The recipe as TRL's `DPOConfig` or `GRPOConfig`."""

from __future__ import annotations

from typing import Any

from trl import DPOConfig, GRPOConfig

from ...common.distributed import RankInfo
from ...config import Recipe
from ...config.hf_arguments import KEY_OF, REFUSED, find_unknown
from ..arguments import argument_values

# Argument of TRL -> the key of the recipe.
KEY_OF_TRL = {
    "beta": "preference.beta",
    "num_generations": "preference.num_generations",
    "max_completion_length": "preference.max_completion_length",
    "max_length": "data.max_length",
    **{name: key for name, key in KEY_OF.items() if key != "data.group_by_length"},
}
_ROLLOUT = "the model itself generates rollouts, so that their choice of tokens is known"
REFUSED_BY_TRL = {
    **dict.fromkeys(("use_vllm", "use_transformers_continuous_batching"), _ROLLOUT),
    "use_liger_kernel": "the fused loss does not run the model's forward, in which tokens are chosen",
    "padding_free": "packed rows have no image rows of their own",
    "precompute_ref_log_probs": "the reference shares the choice of the policy, which is not known before",
    "num_generations_eval": "grpo has no validation here",
    "model_init_kwargs": "the model is loaded as the recipe's model section states",
}
_OWNED = {name for name in REFUSED if name not in ("remove_unused_columns",)}


def find_trl_errors(recipe: Recipe) -> list[str]:
    """What is wrong with `preference.trl`, a sentence for each argument."""
    given, found = recipe.preference.trl, list[str]()
    for name in given:
        path = f"preference.trl.{name}"
        if name in KEY_OF_TRL:
            found.append(f"{path}: the recipe has a key for it; write {KEY_OF_TRL[name]}")
        elif name in REFUSED_BY_TRL:
            found.append(f"{path}: cannot be given: {REFUSED_BY_TRL[name]}; leave it out")
        elif name in _OWNED:
            found.append(f"{path}: cannot be given: {REFUSED[name]}; leave it out")
    config = DPOConfig if recipe.train.method == "dpo" else GRPOConfig
    reserved = {**KEY_OF_TRL, **REFUSED_BY_TRL, **REFUSED}
    return found + [str(issue) for issue in find_unknown(given, config, "preference.trl", reserved)]


def preference_arguments(recipe: Recipe, ranks: RankInfo, universal: bool = False) -> Any:
    """universal: as for `training_arguments`. Raises ValueError where TRL refuses a combination."""
    train, preference = recipe.train, recipe.preference
    values = argument_values(recipe, ranks, train.max_steps or -1, universal)
    values |= {
        "ignore_data_skip": False,  # TRL's own loader: a resumed run skips the batches that were trained
        "dataloader_num_workers": recipe.data.workers,
        "num_train_epochs": train.epochs or 1.0,
        # The reference runs without gradients, and an adapter's reference without the adapter.
        "ddp_find_unused_parameters": True,
    }
    # TRL's default is true, and it reads the former names.
    values |= {"gradient_checkpointing": train.gradient_checkpointing, "gradient_checkpointing_kwargs": None}
    for name in [name for name in values if "activation" in name]:
        values[name.replace("activation", "gradient")] = values.pop(name)
    if preference.beta is not None:
        values["beta"] = preference.beta
    if train.method == "dpo":
        return DPOConfig(**{**values, "max_length": recipe.data.max_length, **preference.trl})
    own = {"num_generations": preference.num_generations, "max_completion_length": preference.max_completion_length}
    arguments = GRPOConfig(**{**values, **own, **preference.trl})
    period = arguments.steps_per_generation * arguments.num_iterations
    if (train.save_steps * train.gradient_accumulation_steps) % period:
        raise ValueError(
            f"train.save_steps: {train.save_steps} steps end inside a batch of rollouts, which is used for "
            f"{period} forwards; expected a multiple of {-(-period // train.gradient_accumulation_steps)} steps, so "
            "that a resumed run continues exactly"
        )
    return arguments
