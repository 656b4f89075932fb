"""`train.hf`: which arguments of transformers' `TrainingArguments` a recipe may give by name.

Three kinds: those that the recipe has a key of its own for, those that a run decides or cannot have, and all others,
which are passed on. The first two are refused with the key, or the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from .errors import ConfigIssue, unexpected

PATH = "train.hf"
# Argument -> the key of the recipe.
KEY_OF = {
    "output_dir": "train.output_dir",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.per_device_batch_size",
    "per_device_eval_batch_size": "train.per_device_eval_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.lr_scheduler",
    "warmup_steps": "train.warmup_steps",
    "warmup_ratio": "train.warmup_ratio",
    "optim": "train.optimizer",
    "adam_beta1": "train.adam_betas",
    "adam_beta2": "train.adam_betas",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "neftune_noise_alpha": "train.neftune_alpha",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "bf16_full_eval": "train.precision",
    "fp16_full_eval": "train.precision",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "use_liger_kernel": "train.liger",
    "logging_steps": "train.logging_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_total_limit",
    "eval_steps": "train.eval_steps",
    "metric_for_best_model": "train.best_metric",
    "resume_from_checkpoint": "train.resume",
    "seed": "train.seed",
    "data_seed": "data.seed",
    "dataloader_num_workers": "data.workers",
    "train_sampling_strategy": "data.group_by_length",
    "group_by_length": "data.group_by_length",
    "deepspeed": "train.deepspeed",
    "push_to_hub": "train.push_to_hub",
    "hub_model_id": "train.push_to_hub",
    "ddp_timeout": "train.timeout_seconds",
    "report_to": "log.report_to",
    "run_name": "log.name",
    "project": "log.project",
}
_LOSS = "the loss is computed from the logits of supervised tokens, after the reduction has moved the labels"
_LOADER = "batches come from this package's own loader, whose order is exact on any number of ranks and at a resume"
_SAVING = "a checkpoint is written completely or not at all, with all that a resumed run needs"
_EVALUATION = "validation is this package's own: loss and accuracy at each of train.eval_budgets"
_DEVICE = "the device and its processes are those of the launcher"
_FSDP = "the run is partitioned as train.backend says (fsdp2 is PyTorch's)"
_DISPLAY = "the progress line and metrics.jsonl replace it"
# Argument -> why a recipe cannot give it.
REFUSED = {
    **dict.fromkeys(("label_smoothing_factor", "label_names"), _LOSS),
    "average_tokens_across_devices": "a step is always normalized by the supervised tokens of all ranks",
    "liger_kernel_config": "the fused losses return no logits, which the loss needs",
    "remove_unused_columns": "the batch has entries that are not in the model's signature but are needed by its hooks",
    "use_cache": "training never uses the cache",
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
                    "checkpointing is always non-reentrant, which the recorded keys need"),
    "torch_compile": "the hooks of the reduction would break the graph in each layer",
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode"), "torch_compile is not available in a run"),
    "auto_find_batch_size": "another batch size would be another order of rows; `plan` predicts what fits",
    **dict.fromkeys(("dataloader_drop_last", "dataloader_pin_memory", "dataloader_persistent_workers",
                     "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
                     "length_column_name", "ignore_data_skip", "accelerator_config"), _LOADER),
    **dict.fromkeys(("save_strategy", "save_only_model", "save_on_each_node", "enable_jit_checkpoint",
                     "load_best_model_at_end", "restore_callback_states_from_checkpoint"), _SAVING),
    **dict.fromkeys(("eval_strategy", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
                     "eval_accumulation_steps", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics",
                     "greater_is_better"), _EVALUATION),
    **dict.fromkeys(("use_cpu", "local_rank", "ddp_backend", "parallelism_config"), _DEVICE),
    "ddp_find_unused_parameters": "it follows from which parts are trained",
    **dict.fromkeys(("fsdp", "fsdp_config"), _FSDP),
    **dict.fromkeys(("logging_strategy", "logging_nan_inf_filter", "disable_tqdm"), _DISPLAY),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "there is no trackio"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "the command decides what is done"),
    "include_num_input_tokens_seen": "metrics.jsonl has tokens_per_second, and visual tokens before and after",
    "hub_token": "a recipe is written into every checkpoint; set the variable HF_TOKEN",
    **dict.fromkeys(("hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push"),
                    "train.push_to_hub uploads the model once, when the run ends; a new repository is private"),
    "optim_target_modules": "only optimizers with parameter groups of their own read it, and the recipe has those",
}  # fmt: skip


def find_reserved(given: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """The arguments that a recipe cannot give; without importing transformers."""
    for name in given:
        if name in KEY_OF:
            yield ConfigIssue(f"{PATH}.{name}", "the recipe has a key for it", f"write {KEY_OF[name]}")
        elif name in REFUSED:
            yield ConfigIssue(f"{PATH}.{name}", f"cannot be given: {REFUSED[name]}", "leave it out")


def find_unknown(
    given: Mapping[str, Any], arguments: type, path: str, reserved: Mapping[str, str]
) -> list[ConfigIssue]:
    """Names that the dataclass `arguments` does not have, and values that are not of the type it states.

    reserved: names that are refused for another reason, and so are not suggested."""
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    hints, issues = get_type_hints(arguments), []
    known = [name for name in hints if not name.startswith("_") and name not in reserved]
    for name, value in given.items():
        if name in reserved:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"it is a name of {arguments.__name__}"
            issues.append(ConfigIssue(f"{path}.{name}", f"{arguments.__name__} has no such argument", remedy))
            continue
        try:
            TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
                value, strict=True
            )
        except ValidationError:
            stated = getattr(hints[name], "__name__", None) or str(hints[name])
            issues.append(unexpected(f"{path}.{name}", value, stated))
        except PydanticSchemaGenerationError:
            continue  # a type that only its own library can check
    return issues


def find_hf_errors(given: Mapping[str, Any]) -> list[ConfigIssue]:
    """What `TrainingArguments` reports about names and values. Imports transformers."""
    if not given:
        return []
    from transformers import TrainingArguments

    return find_unknown(given, TrainingArguments, PATH, {**KEY_OF, **REFUSED})
