"""A recipe as pydantic models, one for each section, with the meaning of every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from ..reduction.schedule import Distill, Elastic, Fixed, Schedule
from .fields import (
    Count,
    Dropped,
    ExactInt,
    Fraction,
    Keep,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    Sections,
    Several,
    Text,
    Words,
    WrittenAsMapping,
    as_mapping,
    custom_error,
)
from .yaml import dump

if TYPE_CHECKING:
    from ..reduction import Reducer, TowerDART

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]
LearningRateSchedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
# Of transformers' `optim`: those that take groups of parameters, each with a learning rate of its own.
Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "grokadamw",
    "stable_adamw",
    "sgd",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
]


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


class ReductionConfig(Section):
    """Which tokens are kept: `none`, one method with its options, or a list of stages. The options of a stage are the
    fields of its reducer, which checks them. A schedule moves the budget of a single stage during training; the `keep`
    of the stage is the budget that is served."""

    stages: Sections[dict[str, Any]] = Field(
        default=({"method": "dart", "keep": 0.222, "layer": 2},), description="each a method with its options"
    )
    schedule: Annotated[Schedule, WrittenAsMapping()] = Field(
        default_factory=Elastic, description="how the budget moves during training"
    )
    tower: dict[str, Any] | None = Field(
        default=None,
        description="a stage in the vision tower, before all others: `{tolerance: 0.0}` drops units of repeated "
        "pixels, `{layer: 4, keep: 0.5}` keeps a ratio from block 4 on; null: the entire tower runs",
    )

    def reducers(self) -> list[Reducer]:
        from ..reduction import from_config

        return [from_config(stage) for stage in self.stages]

    def tower_stage(self) -> TowerDART | None:
        from ..reduction import tower_from_config

        return None if self.tower is None else tower_from_config(self.tower)

    def all_stages(self) -> list[Reducer | TowerDART]:
        """What `attach` takes."""
        tower = self.tower_stage()
        return [*([] if tower is None else [tower]), *self.reducers()]

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        return normal_reduction(value)

    @model_serializer
    def _write(self) -> Any:
        """The shortest of the forms that `normal_reduction` reads."""
        if not self.stages:
            return "none"
        others = {"schedule": as_mapping(self.schedule)} | ({} if self.tower is None else {"tower": self.tower})
        if len(self.stages) == 1:
            return {**self.stages[0], **others}
        return {"stages": list(self.stages), **others}


class Scorer(Section):
    """How the scorers of method `learned` are trained; ignored by other methods."""

    train: bool = Field(default=True, description="false: scorers stay as they are in `path`")
    path: str | None = Field(
        default=None, description="a run, checkpoint or export whose scorers training starts from; null: new ones"
    )
    learning_rate: Positive = Field(default=2e-3, description="of the scorers")
    attention: NotNegative = Field(
        default=1.0,
        description="weight of the loss against the attention of the same weights at full tokens (KL divergence)",
    )
    answer_tokens: NotNegativeInt = Field(
        default=8, description="tokens of each answer whose attention counts, in addition to the last prompt token"
    )
    task: NotNegative = Field(
        default=0.0,
        description="weight of the language model's own loss, which reaches the scores through a relaxed top-k; "
        "the forward keeps exactly the tokens that are served",
    )
    temperature_start: Positive = Field(default=1.0, description="of the relaxed top-k at the first step")
    temperature_end: Positive = Field(
        default=0.1, description="at the last step, falling geometrically; the lower, the closer to the hard choice"
    )


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


class SourceConfig(Section):
    """Rows of data."""

    path: Text = Field(description="a file, a folder or a hub id")
    name: str | None = Field(default=None, description="in reports; null: from the path")
    images: str | None = Field(
        default=None, description="folder that image names are relative to; null: the folder of the file"
    )
    format: Literal["auto", "llava", "messages", "openai", "qa", "query", "alpaca", "datasets"] = Field(
        default="auto", description="format of the rows; auto: detected"
    )
    split: str = Field(default="train", description="of a datasets folder or hub id that has several")
    columns: dict[str, str] = Field(
        default_factory=dict, description="names of columns: the expected name, and the name in the data"
    )
    streaming: bool = Field(
        default=False, description="read rows as they come, without loading or indexing all of them"
    )
    limit: Count | None = Field(default=None, description="number of rows used at most")
    weight: Positive = Field(default=1.0, description="share of rows, relative to the other sources")


class VideoConfig(Section):
    """Which frames of a video are used."""

    frames: Count = Field(default=16, description="most frames of a video, evenly spaced")
    fps: Positive | None = Field(
        default=None,
        description="frames for each second of the video, at most `frames`; null: `frames`, however long it is",
    )
    max_pixels: Count | None = Field(
        default=None, description="larger frames are scaled down; null: as the processor does"
    )


class Data(Section):
    """The training and validation data."""

    train: Sections[SourceConfig] = Field(default=(), description="training sources, mixed by their weights")
    validation: Sections[SourceConfig] = Field(
        default=(), description="validation sources, evaluated every train.eval_steps"
    )
    max_length: Count = Field(
        default=2048, description="largest number of tokens of a sample, visual ones included, before the reduction"
    )
    on_too_long: Literal["drop", "error", "truncate_text"] = Field(
        default="drop", description="what happens to longer samples; image tokens are never cut"
    )
    turns: Literal["together", "apart"] = Field(
        default="together",
        description="together: a conversation is one row, and an image is reduced as for the first answer after it; "
        "apart: one row for each answer, with the turns before it as its prompt, reduced as for that answer",
    )
    template: Text | None = Field(
        default=None,
        description="chat template in place of the model's own: a Jinja file, or its text; saved with the processor",
    )
    on_bad_row: Literal["skip", "error"] = Field(default="skip", description="skipped rows are logged and counted")
    max_bad_fraction: Fraction = Field(default=0.01, description="a larger share of bad rows ends the run")
    allow_urls: bool = Field(default=False, description="fetch images from the network")
    follow_links: bool | Several[Text] = Field(
        default=False,
        description="whether links may lead out of the image folder: false, true, or the folders they may lead to",
    )
    max_pixels: Count | None = Field(
        default=None, description="larger images are scaled down; null: as the processor does"
    )
    min_pixels: Count | None = Field(default=None, description="smaller images are scaled up")
    video: VideoConfig = Field(default_factory=VideoConfig, description="frames of videos")
    group_by_length: bool | None = Field(
        default=None,
        description="batches of similar length after the reduction; null: true, but false where rows are streamed or "
        "images are fetched",
    )
    pad_to_multiple_of: Count | None = Field(
        default=None, description="batches are padded to a multiple of this; null: to the longest sample"
    )
    workers: NotNegativeInt = Field(default=2, description="loader processes for each rank")
    seed: NotNegativeInt = Field(default=0, description="of the order of rows")

    def template_text(self) -> str | None:
        """The Jinja source of `template`. Raises ValueError where its file cannot be read."""
        given = self.template
        if given is None or "{{" in given or "{%" in given:
            return given
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{given!r} is neither the text of a Jinja template nor a file that can be read: {error}"
            ) from None

    @property
    def groups_by_length(self) -> bool:
        """`group_by_length` of a new run. Lengths of streamed rows are not known in advance, and the size of an image
        that is fetched would be a download."""
        if self.group_by_length is not None:
            return self.group_by_length
        return not (self.allow_urls or any(source.streaming for source in self.train))


class Preference(Section):
    """Preference and RL training (`train.method`) by TRL's own trainers. Rollout, reference and update of a row share
    one choice of visual tokens."""

    beta: NotNegative | None = Field(
        default=None, description="weight of the divergence from the reference; null: TRL's default for the method"
    )
    rewards: Several[Text] = Field(
        default=(), description="grpo: functions, each `package.module:function`, called as TRL calls them"
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(default=8, description="grpo: rollouts of each prompt")
    max_completion_length: Count = Field(default=256, description="grpo: longest rollout in tokens")
    trl: dict[str, Any] = Field(
        default_factory=dict,
        description="other arguments of TRL's `DPOConfig` or `GRPOConfig` by their names, such as "
        "`{loss_type: [ipo]}` or `{temperature: 0.8}`",
    )


class Train(Section):
    """The training run."""

    method: Literal["sft", "dpo", "grpo"] = Field(
        default="sft",
        description="sft: on answers; dpo: on pairs of a chosen and a rejected answer; grpo: on rewards of rollouts",
    )
    output_dir: str = Field(default="", description="folder of the run; empty: runs/<name of the recipe's file>")
    epochs: Positive | None = Field(default=1.0, description="passes over the data")
    max_steps: Count | None = Field(default=None, description="optimizer steps; takes precedence over epochs")
    per_device_batch_size: Count = Field(default=1, description="samples of a rank in one forward")
    per_device_eval_batch_size: Count = Field(
        default=4, description="samples of a rank in one forward of the validation"
    )
    padding_free: bool = Field(
        default=False,
        description="rows of a forward are laid end to end, without padding, and attention stays within each row",
    )
    tokens_per_batch: Count | None = Field(
        default=None,
        description="tokens of a rank in one forward, in place of per_device_batch_size; needs padding_free. A row "
        "counts its tokens at the budget that is served, as a mean over the decoder's layers",
    )
    gradient_accumulation_steps: Count = Field(default=1, description="forwards for each optimizer step")
    learning_rate: Positive = Field(default=1e-4, description="of parts that have none of their own")
    lr_scheduler: LearningRateSchedule = Field(default="cosine", description="how the learning rate decays")
    warmup_ratio: Fraction = Field(default=0.03, description="share of the steps in which the learning rate rises")
    warmup_steps: NotNegativeInt | None = Field(
        default=None, description="steps in which the learning rate rises; takes precedence over warmup_ratio"
    )
    min_learning_rate: NotNegative | None = Field(
        default=None,
        description="where lr_scheduler cosine ends; a part with its own learning rate ends at the same share of it",
    )
    optimizer: Optimizer = Field(
        default="adamw_torch_fused",
        description="by transformers' name; those with 8bit, lion, ademamix or paged need the package bitsandbytes",
    )
    adam_betas: Several[Dropped] = Field(
        default=(0.9, 0.999), description="of the optimizers of the Adam, AdEMAMix and Lion families"
    )
    neftune_alpha: Positive | None = Field(
        default=None, description="uniform noise on the embeddings in training (NEFTune); null: none"
    )
    weight_decay: NotNegative = Field(default=0.0, description="of matrices, never of norms and biases")
    max_grad_norm: NotNegative = Field(default=1.0, description="gradients are clipped to this norm; 0: never")
    precision: Literal["bf16", "fp16", "fp32"] = Field(default="bf16", description="of the computation")
    gradient_checkpointing: bool = Field(default=True, description="compute activations again instead of keeping them")
    backend: Literal["deepspeed", "fsdp2", "ddp"] = Field(
        default="deepspeed",
        description="deepspeed: with zero_stage (stage 0 under torchrun is DDP); fsdp2: PyTorch's own, ranks share "
        "weights, gradients and optimizer state; ddp: every rank has all of them",
    )
    zero_stage: Annotated[Literal[0, 1, 2, 3], ExactInt] = Field(
        default=2, description="backend deepspeed; ranks share: 1 optimizer state, 2 also gradients, 3 also weights"
    )
    offload_optimizer: bool = Field(default=False, description="optimizer state is kept in the memory of the host")
    offload_parameters: bool = Field(
        default=False, description="weights are kept in the memory of the host; zero_stage 3 only"
    )
    deepspeed: str | None = Field(
        default=None, description="your own DeepSpeed JSON file, in place of zero_stage and offload_*"
    )
    save_steps: Count = Field(default=500, description="steps between checkpoints; the last step is always saved")
    save_total_limit: Count | None = Field(
        default=3, description="newest checkpoints that are kept, in addition to the best; null: all"
    )
    eval_steps: Count | None = Field(default=None, description="steps between validations; null: at every checkpoint")
    eval_budgets: Several[Keep] = Field(
        default=(1.0, 0.333, 0.111), description="validation is repeated at each budget"
    )
    best_metric: str | None = Field(
        default=None,
        description="metric of the validation for the best checkpoint, such as loss; null: the newest is best",
    )
    early_stopping_patience: Count | None = Field(
        default=None,
        description="the run ends after so many validations in a row without a better best_metric (null: loss)",
    )
    early_stopping_threshold: NotNegative = Field(
        default=0.0, description="a smaller change of best_metric does not count as better"
    )
    resume: Text = Field(
        default="auto", description="auto: from the newest complete checkpoint; never; or the folder of one"
    )
    logging_steps: Count = Field(default=10, description="steps between lines of metrics")
    overlay_steps: Count | None = Field(
        default=None, description="steps between drawings of the kept tokens of a few validation images; null: never"
    )
    seed: NotNegativeInt = Field(default=0, description="of dropout, new adapters and drawn budgets")
    on_nan: Literal["skip", "stop"] = Field(default="stop", description="what happens at a NaN or Inf loss or gradient")
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop", description="what happens when a checkpoint cannot be written"
    )
    timeout_seconds: Count = Field(default=1800, description="a rank that makes no progress for longer ends the run")
    push_to_hub: (
        Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$"), Words("a repository, such as my-org/my-model")] | None
    ) = Field(
        default=None,
        description="repository on the hub to which the best checkpoint (or the newest) is uploaded when the run "
        "ends; a new one is private, and the token is that of the variable HF_TOKEN or of `hf auth login`",
    )
    liger: bool = Field(default=False, description="fused kernels of the liger-kernel package")
    hf: dict[str, Any] = Field(
        default_factory=dict,
        description="other arguments of transformers' `TrainingArguments` by their names, such as "
        "`{adam_epsilon: 1.0e-6, tf32: true}`",
    )

    @property
    def requires_deepspeed(self) -> bool:
        return bool(self.deepspeed or self.offload_optimizer or self.offload_parameters)


class Log(Section):
    """Experiment trackers, in addition to metrics.jsonl, which is always written."""

    report_to: Several[Literal["wandb", "tensorboard", "none"]] = Field(default=(), description="the trackers")
    project: Text = Field(default="dart-train", description="project of the tracker")
    name: str | None = Field(default=None, description="name of the run; null: the name of its folder")
    group: str | None = Field(default=None, description="of runs that belong together")
    tags: Several[str] = Field(default=(), description="to find the run by")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="of W&B; auto: offline where there is no key"
    )


class QuestionSet(SourceConfig):
    """Questions with reference answers."""

    metrics: Several[Text] = Field(default=(), description="names of metrics; empty: compare.metrics")
    kind_metrics: dict[str, Several[Text]] = Field(
        default_factory=dict, description="a kind of question, and the metrics for it in place of the others"
    )
    second_turn: Several[Literal["anew", "cached"]] = Field(
        default=(),
        description="also ask each question after another one about its image: with a prefill of its own (anew), or "
        "from the tokens that the first question kept (cached)",
    )


class Compare(Section):
    """A comparison of checkpoints, methods and budgets."""

    checkpoints: dict[str, str] = Field(
        default_factory=dict, description="a name, and a folder or hub id; empty: model.path as base"
    )
    methods: Several[str | dict[str, Any]] = Field(
        default=("dart",), description="names of methods, or mappings with options"
    )
    budgets: Several[Keep] = Field(
        default=(1.0, 0.333, 0.222, 0.111), description="budgets of every method; full tokens are always measured"
    )
    sets: Sections[QuestionSet] = Field(default=(), description="the question sets")
    metrics: Several[Text] = Field(default=("exact_match",), description="metrics of sets that name none")
    batch_size: Count = Field(default=8, description="questions answered together")
    max_new_tokens: Count = Field(default=32, description="longest answer in tokens")
    timing: bool = Field(default=True, description="also measure latency and memory")
    timing_batch_size: Count = Field(default=1, description="questions answered together while time is measured")
    timing_repeats: Count = Field(default=7, description="measurements of each row, interleaved with all others")
    seed: NotNegativeInt = Field(default=0, description="of the resampling for confidence intervals")
    output_dir: str = Field(default="", description="folder of the results; empty: compare/ in the run folder")


class Recipe(Section):
    """Everything about a run."""

    model: Model
    reduction: ReductionConfig = Field(default_factory=ReductionConfig)
    parts: Parts = Field(default_factory=Parts)
    data: Data = Field(default_factory=Data)
    distill: Annotated[Distill, WrittenAsMapping()] = Field(default_factory=Distill)
    train: Train = Field(default_factory=Train)
    preference: Preference = Field(default_factory=Preference)
    scorer: Scorer = Field(default_factory=Scorer)
    log: Log = Field(default_factory=Log)
    compare: Compare = Field(default_factory=Compare)

    @property
    def has_scorer(self) -> bool:
        return any(stage.get("method") == "learned" for stage in self.reduction.stages)

    @property
    def trains_scorer(self) -> bool:
        return self.has_scorer and self.scorer.train

    @property
    def trains_scorer_alone(self) -> bool:
        """Nothing of the model is trained. Where scorers learn from attention only, a step is one forward at full
        tokens."""
        return self.trains_scorer and all(part.mode == "frozen" for part in self.parts.named().values())

    @property
    def trains_at_full_tokens(self) -> bool:
        """A step is one forward at full tokens: scorers learn from its attention, and nothing else is trained."""
        return self.trains_scorer_alone and not self.scorer.task

    @property
    def runs_teacher(self) -> bool:
        """A step also runs the layers after the reduction at a second budget: for `distill`, or for the attention that
        scorers learn from."""
        if self.trains_at_full_tokens:
            return False
        return self.distill.enabled or (self.trains_scorer and self.scorer.attention > 0)

    def to_dict(self) -> dict[str, Any]:
        """Mappings, lists and scalars, with every default written out."""
        written: dict[str, Any] = plain(self.model_dump())
        return written

    def to_yaml(self) -> str:
        return dump(self.to_dict())


def plain(value: Any) -> Any:
    """Tuples become lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def normal_reduction(value: Any) -> Any:
    """{stages: [...], schedule: {...}} from each of the forms a reduction can be written in:

    reduction: none
    reduction: {method: dart, keep: 64, layer: 2, schedule: {kind: elastic}}
    reduction: [{method: dart, layer: 2, keep: 288}, {method: dart, layer: 8, keep: 64}]
    """
    if isinstance(value, str):
        value = {"method": value}
    if isinstance(value, list):
        value = {"stages": value}
    if not isinstance(value, Mapping):
        raise custom_error(f"given {value!r}, expected a method, a mapping with one, a list of them, or none")
    if not value:
        return {}
    if "stages" in value:
        stages = value["stages"]
        if not isinstance(stages, list | tuple) or (isinstance(stages, list) and not stages):
            expected = "a list of stages, each a mapping with a method"
            raise custom_error(f"given {stages!r}, expected {expected}", key="stages")
        return {**value, "schedule": value.get("schedule") or {"kind": "fixed"}}
    if value.get("method") == "none":
        if len(value) > 1:
            others = ", ".join(str(key) for key in value if key != "method")
            raise custom_error(f"method none takes no options, given {others}", "write `reduction: none`")
        return {"stages": (), "schedule": Fixed()}
    stage = {key: each for key, each in value.items() if key not in ("schedule", "tower")}
    schedule = value.get("schedule") or {"kind": "elastic"}
    return {"stages": [stage], "schedule": schedule, "tower": value.get("tower")}
