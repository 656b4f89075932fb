"""The sections `model` and `parts`: the model, and what of it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .fields import Count, Dropped, Positive, Section, Several, Text

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]


class Model(Section):
    """The model that is trained or compared."""

    path: Text = Field(description="a folder or a hub id")
    revision: str | None = Field(default=None, description="revision of the hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the weights; auto: as saved"
    )
    attn_implementation: Attention = Field(default="auto", description="auto: the fastest that the machine has")
    quantization: Literal["none", "nf4", "fp4", "int8"] = Field(
        default="none",
        description="QLoRA: linear layers of the language model are loaded in 4 or 8 bit for training, and stay frozen "
        "below the adapters; needs the package bitsandbytes. Vision tower, projector and head keep model.dtype; an "
        "export merges the adapter into the unquantized weights",
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")


class Part(Section):
    """How one part of the model is trained."""

    mode: Literal["frozen", "lora", "full"] = Field(default="frozen", description="what of the part is trained")
    learning_rate: Positive | None = Field(default=None, description="null: train.learning_rate")


class Lora(Section):
    """LoRA adapters."""

    rank: Count = Field(default=16, description="rank of the two factors")
    alpha: Positive = Field(default=32.0, description="the update is scaled by alpha / rank")
    rslora: bool = Field(default=False, description="scaled by alpha / sqrt(rank), for high ranks (rsLoRA)")
    dora: bool = Field(default=False, description="the magnitude of each output is trained too (DoRA); slower steps")
    dropout: Dropped = Field(default=0.05, description="on the input of the adapters")
    targets: Several[str] | None = Field(
        default=None, description="names of layers; null: all linear layers of parts in mode lora, never the head"
    )
    modules_to_save: Several[Text] = Field(
        default=(), description="names of modules that are trained completely next to the adapters, such as lm_head"
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="which biases are trained")


class Parts(Section):
    """What of the model is trained."""

    vision: Part = Field(default_factory=Part, description="the vision tower")
    projector: Part = Field(
        default_factory=lambda: Part(mode="full"), description="from the vision tower to the language model"
    )
    language: Part = Field(default_factory=lambda: Part(mode="lora"), description="the language model")
    lora: Lora = Field(default_factory=Lora, description="the adapters of every part in mode lora")

    def named(self) -> dict[str, Part]:
        return {"vision": self.vision, "projector": self.projector, "language": self.language}
