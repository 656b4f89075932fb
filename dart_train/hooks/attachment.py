"""`attach(model, reducer)`: put a reduction on a model, and take it off again without a trace."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..common.environment import version_note
from ..models.structure import SCORERS, ModelParts, find_parts, unwrap_model
from ..models.towers import find_tower
from ..reduction import KeepAll, Reducer, TowerDART
from ..reduction.batch_layout import to_cpu_in_one_copy
from ..reduction.budget import Keep
from ..reduction.tower import Representatives
from .answers import AnswerCollator, AnswerLocator
from .batch_plan import GenerateCall
from .choices import RowChoices, SharedChoice
from .copying import COPY, REDUCE, copy_without_hooks, refuse_pickling
from .deepstack import patch_deepstack
from .engine import Engine, Output, observed_layer
from .forward_state import ForwardState, TaskGradient
from .patcher import ObjectPatcher
from .scorers import ScorerTraining, check_attention_rows, layers_with_rows, place_scorers
from .teacher import TeacherPass
from .tower import TowerHooks
from .transformers_compat import LOSS_FUNCTION, cache_of, is_static

MARK = "_dart_train_attached"
PREPARE = "prepare_inputs_for_generation"


@dataclass(frozen=True)
class Kept:
    """What a forward kept.

    mask [B, L] bool: kept tokens after the last stage, text included; visual [B, L] bool: visual tokens of the input;
    stages: the mask after each stage; visual_before, visual_after: numbers per sample, on the host; length: of the
    reduced sequence; pivots [B, L] bool: image and text tokens that the last stage's selection started from, None
    where its method has none; scored [B, L] bool: visual tokens that the last stage kept for the scores of a trained
    scorer, None where it has no scorer.
    """

    mask: Tensor
    visual: Tensor
    stages: tuple[Tensor, ...]
    visual_before: tuple[int, ...]
    visual_after: tuple[int, ...]
    length: int
    pivots: Tensor | None = None
    scored: Tensor | None = None

    @classmethod
    def of(cls, state: ForwardState) -> Kept:
        layout, groups, last = state.plan.layout, state.groups, state.stages[-1]
        assert layout is not None and groups is not None
        masks = tuple(stage.kept.mask() for stage in state.stages)
        after, seen = [0] * layout.shape[0], state.plan.visual
        for row, number in zip(groups.row_of, last.visual_counts, strict=True):
            after[row] += number
        pivots = None
        if last.pivots is not None:
            places, count = last.pivots
            pivots = torch.zeros_like(masks[-1])
            pivots[groups.rows[:, None].expand_as(places)[count], places[count]] = True
        scored = None
        if last.scores is not None and last.scores.kept is not None:
            chosen, places = last.scores.kept, last.scores.positions
            scored = torch.zeros_like(masks[-1])
            scored[groups.rows[:, None].expand_as(places)[chosen], places[chosen]] = True
        before = tuple(layout.visual.sum(1).tolist())
        assert seen is not None
        return cls(masks[-1], seen, masks, before, tuple(after), last.kept.length, pivots, scored)

    @property
    def kept_visual(self) -> Tensor:
        """[B, L] bool."""
        return self.mask & self.visual


@dataclass(frozen=True)
class RunningGenerate:
    """What a call of `generate` that has not ended has set: its prompt, and the budgets that it runs at."""

    call: GenerateCall | None
    reducers: tuple[Reducer, ...]


class Attached:
    """A model with its reduction. Also a context manager, which removes it."""

    def __init__(self, engine: Engine, tower: TowerHooks | None = None) -> None:
        self._engine = engine
        self._tower = tower
        self._patcher = ObjectPatcher()
        self._scorer_training: ScorerTraining | None = None
        self._handles: list[Any] = []
        self._training_handles: list[Any] = []  # inside with_scorer_loss

    @property
    def reducers(self) -> tuple[Reducer, ...]:
        return self._engine.reducers

    @property
    def tower(self) -> TowerDART | None:
        """The stage in the vision tower, if there is one."""
        return None if self._tower is None else self._tower.stage

    @property
    def tower_units(self) -> tuple[Representatives | None, ...]:
        """What the tower dropped in the last forward with images: one entry for each run of the tower, None where
        nothing was."""
        return () if self._tower is None else tuple(self._tower.last)

    @property
    def tower_share(self) -> float:
        """How much of the work of the vision tower's blocks was done in the last forward with images: 1.0 without a
        stage there, or where it dropped nothing. Attention counts like the rest, though it shrinks more."""
        if self._tower is None or not self._tower.last:
            return 1.0
        depth, layer = len(self._tower.parts.blocks), self._tower.stage.layer
        kept = [1.0 if run is None else len(run.kept) / len(run.of) for run in self._tower.last]
        return (layer + (depth - layer) * sum(kept) / len(kept)) / depth

    @property
    def last(self) -> Kept | None:
        """What the last forward with images kept; None if nothing was reduced in it."""
        return None if self._engine.last is None else Kept.of(self._engine.last)

    @property
    def seed(self) -> int:
        """Added to the seed of random selections; a trainer sets it to its step."""
        return self._engine.seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._engine.seed = value

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards inside this context keep all tokens."""
        before, self._engine.active = self._engine.active, False
        try:
            yield
        finally:
            self._engine.active = before

    @property
    def choices(self) -> RowChoices | None:
        """What each row of the last forward with images kept, for `one_choice`."""
        last = self.last
        return None if last is None else RowChoices.of(last.visual, last.stages)

    @contextmanager
    def one_choice(self, shared: SharedChoice, *others: Attached) -> Iterator[SharedChoice]:
        """Forwards of this model and of `others` inside this context keep the same tokens of the same rows: those of
        `shared`, or of the first forward where it has none yet."""
        engines = [self._engine, *(other._engine for other in others)]
        before = [engine.shared for engine in engines]
        for engine in engines:
            engine.shared = shared
        try:
            yield shared
        finally:
            for engine, value in zip(engines, before, strict=True):
                engine.shared = value

    def set_keep(self, *keep: Keep) -> None:
        """Another budget for each stage, from the next forward on."""
        self._engine.student.reducers = self._with_budgets(keep)

    def suspend_generate(self, reducers: Sequence[Reducer] | None = None) -> RunningGenerate:
        """Between two tokens of a call of `generate`, so that another one can run before its next token. reducers: the
        budgets of others; None: the present ones."""
        engine = self._engine
        running = RunningGenerate(engine.generate_call, engine.reducers)
        engine.generate_call = None
        if reducers is not None:
            engine.student.reducers = tuple(reducers)
        return running

    def resume_generate(self, running: RunningGenerate) -> None:
        self._engine.generate_call, self._engine.student.reducers = running.call, running.reducers

    def set_tower_keep(self, keep: float) -> None:
        """Another ratio for the stage in the vision tower, from the next forward on."""
        if self._tower is None or self._tower.stage.by_pixels:
            raise ValueError("no stage in the vision tower has a `keep`: attach TowerDART(keep=...)")
        self._tower.stage = replace(self._tower.stage, keep=keep)

    @contextmanager
    def with_teacher(self, *keep: Keep | Reducer) -> Iterator[None]:
        """Inside this context every forward also returns logits at a second budget of each stage, without gradient.
        Logits are concatenated on dim 0: first this model's budget, then the second. The vision tower and layers < K
        run once for both. One reducer in place of the budgets: the teacher has it instead of this model's stages, at a
        layer that is not before their first."""
        own = [each for each in keep if isinstance(each, Reducer)]
        if own and len(keep) > 1:
            raise ValueError(f"{len(keep)} entries for the teacher: give one reducer, or a budget for each stage")
        budgets = [each for each in keep if not isinstance(each, Reducer)]
        teacher = self._engine.own_teacher(own[0]) if own else TeacherPass(self._with_budgets(budgets))
        before, self._engine.teacher = self._engine.teacher, teacher
        handles = self._engine.register_teacher_hooks(teacher)
        try:
            yield
        finally:
            self._engine.teacher = before
            for handle in handles:
                handle.remove()

    def _with_budgets(self, keep: Sequence[Keep]) -> tuple[Reducer, ...]:
        if len(keep) != len(self.reducers):
            raise ValueError(f"{len(keep)} budgets were given for {len(self.reducers)} stages: give one for each stage")
        return tuple(replace(r, keep=k) for r, k in zip(self.reducers, keep, strict=True))

    @property
    def scorers(self) -> dict[int, nn.Module]:
        """The trained scorers by the layer of their stage; empty for methods that have none."""
        return dict(self._engine.scorers)

    @contextmanager
    def with_scorer_loss(self, answer_tokens: int = 8, served: Sequence[Keep] = ()) -> Iterator[None]:
        """Inside this context, forwards that keep all tokens (at this model's budget, or at a teacher's) record which
        visual tokens the model attends to; `scorer_loss` then compares the scorers with it. served: a budget of each
        stage, at which `scorer_overlap` compares them."""
        if not self._engine.scorers:
            raise ValueError("no stage has a scorer to train: attach Learned(...)")
        check_attention_rows(self._engine.parts, self._engine.scorers)
        training = ScorerTraining(self._engine, answer_tokens, served)
        before = self._scorer_training, self._training_handles
        self._scorer_training, self._training_handles = training, [*before[1], *(handles := training.register_hooks())]
        try:
            yield
        finally:
            self._scorer_training, self._training_handles = before
            for handle in handles:
                handle.remove()

    def scorer_loss(self) -> Tensor:
        """Of the last forward, inside `with_scorer_loss`: differentiable in the scorers' weights."""
        if self._scorer_training is None:
            raise RuntimeError("scorer_loss() is only known inside with_scorer_loss()")
        return self._scorer_training.loss()

    def scorer_overlap(self) -> Tensor | None:
        """After `scorer_loss`: the share of the tokens with the most attention that are among those of the highest
        scores, at the budget `served`; mean over groups and stages, on the device. None without images."""
        return None if self._scorer_training is None else self._scorer_training.overlap

    @contextmanager
    def with_task_gradient(self, temperature: float, weight: float = 1.0) -> Iterator[None]:
        """Inside this context the loss of a forward has a gradient in the scorers' weights too, `weight` times that of
        a relaxed selection (`reduction/relaxation.py`). What a forward keeps and returns does not change."""
        if not self._engine.scorers:
            raise ValueError("no stage has a scorer to train: attach Learned(...)")
        if not (temperature > 0 and weight >= 0):
            raise ValueError(f"temperature={temperature!r}, weight={weight!r}: expected > 0 and >= 0")
        before, self._engine.task = self._engine.task, TaskGradient(temperature, weight) if weight else None
        try:
            yield
        finally:
            self._engine.task = before

    def idle_scorer_loss(self) -> Tensor:
        """Zero, with a gradient of zero in each scorer weight where the last batch had no image: ZeRO and DDP wait for
        gradients of all weights. `scorer_loss` includes it."""
        return self._engine.idle_loss()

    @contextmanager
    def skip_model_loss(self) -> Iterator[None]:
        """Inside this context labels only select where logits are wanted; the model's own loss is not computed."""
        before, self._engine.loss.enabled = self._engine.loss.enabled, False
        try:
            yield
        finally:
            self._engine.loss.enabled = before

    def prefetch_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        answer_mask: Tensor | None = None,
        **others: Any,
    ) -> None:
        """Read the next forward's batch while it is still on the CPU: that forward then needs no synchronisation.

        labels are those of the answers. Where they are not, where the answers are: prompt_lengths [B], tokens before a
        row's first answer with padding not counted, or answer_mask [B, L].
        others: the rest of the batch, of which the grids of the images are read where a method needs them.
        """
        batch = {"ids": input_ids, "mask": attention_mask, "labels": labels}
        batch |= {"prompt_lengths": prompt_lengths, "answer_mask": answer_mask}
        grids = {name: x for name, x in others.items() if name in self._engine.parts.family.reads}
        self._engine.prefetched = to_cpu_in_one_copy({**batch, **grids})
        if self._tower is not None:
            self._tower.prefetch(others)

    def expect(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        answer_mask: Tensor | None = None,
        *,
        visual: Tensor | None = None,
        **others: Any,
    ) -> None:
        """Before a forward, or a call of `generate`, that is given `inputs_embeds` without `input_ids`.

        visual [B, L] bool: True at visual tokens, of which the embeddings may already be those of the images. Random
        methods draw by the prompt's ids: they draw differently without them.
        input_ids and the others: the former name of `prefetch_batch`, until the next release.
        """
        if (visual is None) == (input_ids is None):
            raise ValueError("expect() takes either visual=mask, [batch, length] bool, or input_ids")
        if input_ids is not None:
            self.prefetch_batch(input_ids, attention_mask, labels, prompt_lengths, answer_mask, **others)
        self._engine.visual = visual

    def collate(self, collator: Callable[..., Any]) -> AnswerCollator:
        """`collator` with one more entry in its batches, `answer_mask`, made of its labels (or its completion_mask or
        assistant_masks): for trainers that take the labels away before they call the model, as with label smoothing or
        a loss of their own. The model does not get the entry; a hook takes it out."""
        return AnswerCollator(collator, self._engine.parts.visual_ids)

    def time_selection(self, on: bool = True) -> None:
        """From now on measure the time that selections take; read it with `selection_seconds`."""
        self._engine.timer.on = on

    def selection_seconds(self) -> float:
        """Seconds that selections took since the last call. On a GPU this waits for the device."""
        return self._engine.timer.read()

    def refresh(self) -> None:
        """Read the final norm's weight again. Needed under ZeRO-3 only, where it is collective."""
        self._engine.scale.refresh()

    def remove(self) -> None:
        """Leave the model as it was found. Calling it twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._engine.packing.remove()
        self._patcher.undo()
        self._engine.student.state = None

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        """With its model."""
        copy.deepcopy(self._engine.parts.top, memo)
        twin: Attached = memo[id(self)]
        return twin

    def _copy(self, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        """`copy.deepcopy(module)`. The copy of the model comes with the same reduction, independent of this one; that
        of a part of it is plain."""
        engine, top = self._engine, self._engine.parts.top
        if module is top:
            memo |= {id(self): None, id(engine.loss): None}  # replaced below
        handles = [*self._handles, *engine.packing.handles, *self._training_handles]
        twin = copy_without_hooks(module, memo, [handle.id for handle in handles])
        self._patcher.undo_in_copy(memo)
        if module is top:
            towers = [] if self.tower is None else [self.tower]
            twin_attached = attach(twin, [*towers, *self.reducers], output=engine.output)
            twin_attached._patcher.take_modules_of_copy(self._patcher, memo)
            twin_attached._engine.seed = engine.seed
            twin_attached._engine.locator = copy.copy(engine.locator)
            memo[id(self)] = twin_attached
        return twin

    # The former names, until the next release.
    beside, without_loss = with_teacher, skip_model_loss
    time_choices, choosing_seconds = time_selection, selection_seconds

    def _install(self) -> Attached:
        engine, parts, patcher = self._engine, self._engine.parts, self._patcher
        patcher.set(parts.top, MARK, self)
        patcher.set(parts.top, LOSS_FUNCTION, engine.loss)
        patcher.set(parts.top, "generate", _recording_the_prompt(engine, parts.top.generate))
        if hasattr(parts.top, PREPARE):
            patcher.set(parts.top, PREPARE, _recording_the_mask(engine, getattr(parts.top, PREPARE)))
        for name, value in patch_deepstack(engine).items():
            patcher.set(parts.text, name, value)
        for part in (parts.top, parts.inner, parts.text):
            patcher.set(part, COPY, functools.partial(self._copy, part))
            patcher.set(part, REDUCE, refuse_pickling)
        scorers = place_scorers(parts, engine.reducers)
        if scorers is not None:
            patcher.set_module(parts.top, SCORERS, scorers)
            engine.scorers = {
                r.layer: scorers[name] for r in engine.reducers if (name := f"layer_{r.layer}") in scorers
            }
        self._handles = engine.register_hooks()
        if self._tower is not None:
            self._handles += self._tower.register(parts.inner, patcher)
        return self


def attach(
    model: Any,
    reducer: Reducer | TowerDART | Sequence[Reducer | TowerDART],
    *,
    output: Output = "expand",
    processor: Any = None,
    strict: bool = False,
) -> Attached:
    """Put a reduction, or several stages of it, on a Hugging Face vision-language model. A `TowerDART` comes first.

    output: `expand` keeps the length of the model's output, for trainers and scripts that do not know about the
    reduction: in logits and in each entry of output_hidden_states a dropped token repeats the kept one before it.
    `compact` returns short states, and with labels the logits of supervised positions only: the cheapest.
    Both give the same loss.
    processor: the model's processor or tokenizer, by default that of the folder the model was loaded from. Its chat
    template shows where answers begin in training where labels do not: they are missing, or supervise the prompt too.
    strict: an error instead of a warning where it is not known where answers begin.
    """
    parts = find_parts(model)
    _warn_of_untested_transformers()
    if output not in ("expand", "compact"):
        raise ValueError(f"output={output!r}: expected 'expand' or 'compact'")
    if MARK in vars(parts.top):
        raise ValueError("a reduction is attached to this model already: remove() it first, or use set_keep()")
    towers, stages = _split_stages(reducer)
    stages = _checked_stages(stages, parts)
    name = str(getattr(parts.top.config, "_name_or_path", "") or "")
    locator = AnswerLocator(parts.visual_ids, processor, name, strict)
    engine = Engine(parts, stages, output, locator)
    hooks = TowerHooks(towers[0], find_tower(parts), lambda: engine.active) if towers else None
    return Attached(engine, hooks)._install()


def attached_to(model: Any) -> Attached | None:
    """What `attach` returned for this model, or for the model inside PEFT, DDP or DeepSpeed; a deep copy of a model has
    its own. None if nothing is attached."""
    return vars(unwrap_model(model)).get(MARK)


@functools.cache  # once a process
def _warn_of_untested_transformers() -> None:
    if note := version_note():
        warnings.warn(note, stacklevel=3)


def _split_stages(given: Reducer | TowerDART | Sequence[Reducer | TowerDART]) -> tuple[list[TowerDART], list[Reducer]]:
    """The stage in the tower, and those in the language model, which keeps everything where none is given."""
    stages = [given] if isinstance(given, Reducer | TowerDART) else list(given)
    towers = [stage for stage in stages if isinstance(stage, TowerDART)]
    if len(towers) > 1 or (towers and stages[0] is not towers[0]):
        raise ValueError("expected at most one TowerDART, before all other stages")
    others = [stage for stage in stages if not isinstance(stage, TowerDART)]
    return towers, others or ([KeepAll()] if towers else [])


def _checked_stages(stages: list[Reducer], parts: ModelParts) -> list[Reducer]:
    if not stages or not all(isinstance(stage, Reducer) for stage in stages):
        raise ValueError(f"expected a reducer or a list of reducers, such as DART(keep=64); given {stages!r}")
    layers, depth = [stage.layer for stage in stages], len(parts.layers)
    problems = [f"layer={k}: expected 0 to {depth - 1}, the model has {depth} layers" for k in layers if k >= depth]
    if layers != sorted(set(layers)):
        problems.append(f"stages at layers {layers}: expected each to come after the one before")
    if len({stage.per for stage in stages}) > 1:
        problems.append("all stages must budget per the same thing: give each the same `per`")
    problems += [
        _no_attention_before(stage, parts)
        for number, stage in enumerate(stages)
        if stage.layer < depth
        and "attention" in stage.required_inputs()
        and observed_layer(parts, stages, number) is None
    ]
    problems += _keys_from_another_stage(stages, parts)
    problems += [
        f"{type(stage).__name__} at layer {stage.layer}: the attention of this layer cannot be seen before it runs; "
        "use row='previous'"
        for stage in stages
        if "own_attention" in stage.required_inputs() and stage.layer not in layers_with_rows(parts, stage.layer)
    ]
    if any(stage.positions == "compact" for stage in stages):
        problems += _why_not_compact(parts)
    if problems:
        raise ValueError("; ".join(problems))
    return stages


def _keys_from_another_stage(stages: Sequence[Reducer], parts: ModelParts) -> list[str]:
    """A layer that shares the keys of an earlier one must see them reduced as itself."""
    problems = []
    for stage in stages:
        split = {i: parts.key_source(i) for i in range(stage.layer, len(parts.layers))}
        sources = sorted({source for source in split.values() if source < stage.layer})
        if sources:
            sharing = [layer for layer, source in split.items() if source in sources]
            problems.append(
                f"layer={stage.layer}: layers {sharing[0]} to {sharing[-1]} use the keys of layers {sources}, which "
                f"run before the reduction; use layer <= {sources[0]}"
            )
    return problems


def _why_not_compact(parts: ModelParts) -> list[str]:
    problem = "positions='compact': expected a model whose positions are 0, 1, 2, ...; "
    model, rope = parts.top.config.model_type, getattr(parts.text_config, "rope_parameters", None) or {}
    found = []
    if parts.family.own_positions:
        found.append(f"{problem}{model} may compute them from the image's grid. Use positions='original'")
    kinds = {str(settings.get("rope_type")) for settings in (rope, *rope.values()) if isinstance(settings, dict)}
    if changing := sorted(kinds & {"dynamic", "longrope"}):
        found.append(
            f"{problem}the rotary embedding of {model} ({changing[0]}) depends on the length. Use positions='original'"
        )
    if parts.family.bidirectional_images:
        found.append(f"{problem}image tokens of {model} attend to each other by place. Use positions='original'")
    return found


def _no_attention_before(stage: Reducer, parts: ModelParts) -> str:
    name, layers = type(stage).__name__, parts.attention_layers()
    if layers[0] == 0:
        return f"{name} at layer {stage.layer}: there is no attention before the first layer; use layer >= 1"
    return (
        f"{name} at layer {stage.layer}: no layer before it has attention weights to select by; this model's layers "
        f"{layers} have them: use the layer after one of these"
    )


def _recording_the_prompt(engine: Engine, generate: Callable[..., Any]) -> Callable[..., Any]:
    """In generation the prompt alone decides: not the answer so far, not the drafts of assisted decoding."""

    @functools.wraps(generate)
    def generate_with_prompt(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        before = engine.generate_call
        prompt = ids if isinstance(ids, Tensor) and ids.numel() else kwargs.get("inputs_embeds", ids)
        if isinstance(prompt, Tensor) and prompt.ndim in (2, 3):
            engine.generate_call = GenerateCall(prompt.shape[0], prompt.shape[1], kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            engine.generate_call = before

    return generate_with_prompt


def _recording_the_mask(engine: Engine, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """For a static cache `generate` replaces the mask [B, length], or None, by those of the layers."""

    @functools.wraps(prepare)
    def prepare_with_mask(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        inputs = prepare(*args, **kwargs)
        known = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        engine.generation_mask = (mask,) if known and is_static(cache_of(inputs)) else None
        return inputs

    return prepare_with_mask
