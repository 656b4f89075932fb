"""The sections that say what is trained on what: the model, its parts, the data, the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .ranges import Count, Dropped, Fraction, Positive, Text, Whole

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]


@dataclass(frozen=True)
class Model:
    path: Text  # a folder or a hub id
    revision: str | None = None  # of the hub id
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the weights; auto: as saved
    attn_implementation: Attention = "auto"  # auto: the fastest that the machine has
    trust_remote_code: bool = False  # runs code that comes with the model


@dataclass(frozen=True)
class Part:
    mode: Literal["frozen", "lora", "full"] = "frozen"  # what of it trains
    learning_rate: Positive | None = None  # null: train.learning_rate


@dataclass(frozen=True)
class Lora:
    rank: Count = 16  # of the two factors
    alpha: Positive = 32.0  # the update is scaled by alpha / rank
    dropout: Dropped = 0.05  # on the input of the adapters
    targets: tuple[str, ...] | None = None  # null: all linear layers of parts in mode lora, never the head
    bias: Literal["none", "all", "lora_only"] = "none"  # which biases train


@dataclass(frozen=True)
class Parts:
    vision: Part = field(default_factory=Part)  # the tower that makes visual tokens
    projector: Part = field(default_factory=lambda: Part(mode="full"))  # from the tower to the language model
    language: Part = field(default_factory=lambda: Part(mode="lora"))  # the language model
    lora: Lora = field(default_factory=Lora)  # of every part in mode lora

    def named(self) -> dict[str, Part]:
        return {"vision": self.vision, "projector": self.projector, "language": self.language}


@dataclass(frozen=True)
class Source:
    path: Text  # a file, a folder or a hub id
    name: str | None = None  # in reports; null: from the path
    images: str | None = None  # folder that image names are relative to; null: the file's own folder
    format: Literal["auto", "llava", "messages", "openai", "qa", "datasets"] = "auto"  # auto: looked up in the rows
    split: str = "train"  # of a datasets folder or hub id that has several
    columns: dict[str, str] = field(default_factory=dict)  # our name of a column: its name there
    streaming: bool = False  # read as it comes, never whole
    limit: Count | None = None  # rows used at most
    weight: Positive = 1.0  # share of rows, relative to the other sources


@dataclass(frozen=True)
class Data:
    train: tuple[Source, ...] = ()  # mixed by their weights
    validation: tuple[Source, ...] = ()  # judged at every train.eval_steps
    max_length: Count = 2048  # tokens of a sample, visual ones included, before reduction
    on_too_long: Literal["drop", "error", "truncate_text"] = "drop"  # image tokens are never cut
    on_bad_row: Literal["skip", "error"] = "skip"  # skipped rows are logged and counted
    max_bad_fraction: Fraction = 0.01  # more bad rows than this end the run
    allow_urls: bool = False  # fetch images from the network
    max_pixels: Count | None = None  # larger images are scaled down; null: as the processor does
    min_pixels: Count | None = None  # smaller images are scaled up
    group_by_length: bool = False  # batches of like length, after reduction
    pad_to_multiple_of: Count | None = None  # length of a batch; null: its longest sample
    workers: Whole = 2  # loader processes per rank
    seed: Whole = 0  # of the order of rows


@dataclass(frozen=True)
class Log:
    """metrics.jsonl is always written; these come on top."""

    report_to: tuple[Literal["wandb", "tensorboard", "none"], ...] = ()  # trackers
    project: Text = "dart-train"  # of the tracker
    name: str | None = None  # null: the name of the run folder
    group: str | None = None  # of runs that belong together
    tags: tuple[str, ...] = ()  # to find the run by
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: offline where there is no key
