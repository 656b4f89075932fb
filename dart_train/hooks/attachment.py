"""`attach(model, reducer)`: put a reduction on a model, and take it off again without a trace."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..common.environment import version_note
from ..models.structure import SCORERS, find_parts, unwrap_model
from ..models.towers import find_tower
from ..reduction import Reducer, TowerDART
from ..reduction.batch_layout import to_cpu_in_one_copy
from ..reduction.budget import Keep
from ..reduction.tower import Representatives
from .answers import AnswerCollator, AnswerLocator
from .choices import RowChoices, SharedChoice
from .copying import COPY, REDUCE, copy_without_hooks, refuse_pickling
from .deepstack import patch_deepstack
from .engine import Engine, Output
from .generation import RunningGenerate, record_mask, record_prompt
from .kept import Kept
from .patcher import ObjectPatcher
from .scorer_methods import ScorerMethods
from .scorers import place_scorers
from .stage_checks import check_stages, split_stages
from .teacher import TeacherPass
from .tower import TowerHooks
from .transformers_compat import LOSS_FUNCTION

MARK = "_dart_train_attached"
PREPARE = "prepare_inputs_for_generation"


class Attached(ScorerMethods):
    """A model with its reduction. Also a context manager, which removes it."""

    def __init__(self, engine: Engine, tower: TowerHooks | None = None) -> None:
        super().__init__(engine)
        self._tower = tower
        self._patcher = ObjectPatcher()
        self._handles: list[Any] = []

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
        clone: Attached = memo[id(self)]
        return clone

    def _copy(self, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        """`copy.deepcopy(module)`. The copy of the model comes with the same reduction, independent of this one; that
        of a part of it is plain."""
        engine, top = self._engine, self._engine.parts.top
        if module is top:
            memo |= {id(self): None, id(engine.loss): None}  # replaced below
        handles = [*self._handles, *engine.packing.handles, *self._training_handles]
        clone = copy_without_hooks(module, memo, [handle.id for handle in handles])
        self._patcher.undo_in_copy(memo)
        if module is top:
            towers = [] if self.tower is None else [self.tower]
            attached = attach(clone, [*towers, *self.reducers], output=engine.output)
            attached._patcher.take_modules_of_copy(self._patcher, memo)
            attached._engine.seed = engine.seed
            attached._engine.locator = copy.copy(engine.locator)
            memo[id(self)] = attached
        return clone

    # The former names, until the next release.
    beside, without_loss = with_teacher, skip_model_loss
    time_choices, choosing_seconds = time_selection, selection_seconds

    def _install(self) -> Attached:
        engine, parts, patcher = self._engine, self._engine.parts, self._patcher
        patcher.set(parts.top, MARK, self)
        patcher.set(parts.top, LOSS_FUNCTION, engine.loss)
        patcher.set(parts.top, "generate", record_prompt(engine, parts.top.generate))
        if hasattr(parts.top, PREPARE):
            patcher.set(parts.top, PREPARE, record_mask(engine, getattr(parts.top, PREPARE)))
        for name, value in patch_deepstack(parts.text, engine.student, lambda: engine.teacher).items():
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
    towers, stages = split_stages(reducer)
    stages = check_stages(stages, parts)
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
