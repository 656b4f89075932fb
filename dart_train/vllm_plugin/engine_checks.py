"""Settings of the engine with which the reduction is not served, refused by name when it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .served_reduction import KEEP

# Draft tokens from the text alone. Other drafters read the image too, or were not tried.
SPECULATIVE_METHODS = ("ngram", "ngram_gpu", "suffix")
FULL_ROTARY = ("default",)


def model_problems(model_config: Any) -> Iterator[str]:
    """What is known when the model's config is made."""
    multimodal = model_config.multimodal_config
    if multimodal is None:
        yield "the engine was started without multimodal inputs"
        return
    if multimodal.video_pruning_rate:
        yield "video_pruning_rate is set: vLLM's own pruning would come on top; videos are reduced like images"
    if multimodal.enable_mm_embeds:
        yield "enable_mm_embeds is set: precomputed image embeddings are not reduced; send the images"
    if KEEP in (multimodal.mm_processor_kwargs or {}):
        yield f"{KEEP} is in --mm-processor-kwargs: give the engine's budget by --hf-overrides, a request's by its own"
    vision = getattr(model_config.hf_config, "vision_config", None)
    if getattr(vision, "model_type", None) == "pixtral":
        yield "the vision tower is a Pixtral, whose rows of patches end in tokens of their own"


def rotary_problem(text_config: Any) -> str | None:
    """For models with one position a token, which is served as M-RoPE."""
    kind = (text_config.rope_parameters or {}).get("rope_type", "default")
    if kind in FULL_ROTARY:
        return None
    return f"rope_type={kind!r}: vLLM keeps the positions of kept tokens for rope_type='default' only"


def engine_problems(config: Any) -> Iterator[str]:
    """What is known when the engine's config is complete."""
    if config.parallel_config.pipeline_parallel_size > 1:
        yield (
            "pipeline_parallel_size > 1: the selection needs the decoder's final norm, which is on the last rank; use "
            "tensor parallelism"
        )
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in SPECULATIVE_METHODS:
        yield f"speculative method {speculative.method!r}: expected one of {', '.join(SPECULATIVE_METHODS)}"
    lora = config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        yield "enable_tower_connector_lora: adapters of the vision tower and projector; merge them into the weights"
    if config.compilation_config.cudagraph_mm_encoder:
        yield "cudagraph_mm_encoder: a captured encoder would bypass the reduction"
    if config.ec_transfer_config is not None:
        yield "ec_transfer_config: the encoder's output has columns that another engine would not expect"


def raise_if_any(problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        raise ValueError(f"the reduction cannot be served with these settings: {'; '.join(found)}")
