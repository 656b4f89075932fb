"""The hooks: where a forward is observed, layer by layer, and what is changed there.

| where in a forward         | hook on        | method             | what happens                                  |
| -------------------------- | -------------- | ------------------ | --------------------------------------------- |
| the model starts           | top, pre       | on_model_start     | labels are noted; own inputs are taken out    |
| images and text are merged | inner, pre     | on_inner_start     | plan_batch; position ids                      |
| the last attention before  | attention, pre | on_attention_start | keys, values, attention row recorded          |
| layer K                    | attention      | remove_observer    | the observer is removed                       |
| the decoder starts         | text, pre      | on_decoder_start   | features of layers > K are taken out          |
| each layer >= K            | layer, pre     | on_reduced_layer   | the teacher's layer runs; at K the selection; |
|                            |                |                    | mask and rotary embeddings are gathered       |
| the final norm             | norm           | scale.on_forward   | its weight is copied under ZeRO-3             |
| the decoder ends           | text           | on_decoder_end     | states expanded or compact; cache state       |
| the inner model ends       | inner          | on_inner_end       | what was kept becomes `last`                  |
| the loss                   | loss function  | ReducedLoss        | labels follow the kept tokens                 |
| the model ends             | top            | on_model_end       | nothing is left of the forward                |

No method and no model family is known here, no modeling file is copied and no class is replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..models.structure import ModelParts
from ..reduction import Reducer
from ..reduction.teacher_stage import why_not_teacher_stage
from .answers import INPUTS, AnswerLocator, CallInputs
from .batch_plan import (
    GenerateCall,
    compact_position_ids,
    has_images,
    last_state_alone,
    plan_batch,
    position_ids_from_mask,
)
from .cache_state import CacheState, store_cache_state
from .choices import RowChoices, SharedChoice
from .deepstack import InlineDeepstack, adds_features_inside
from .forward_state import ForwardState, TaskGradient
from .layer_inputs import gather_kwargs, gather_positional
from .layer_masks import LayerMasks
from .masks import check_selected_keys
from .observers import FinalNormWeight, SelectionTimer, remove_observer
from .outputs import ReducedLoss, expand_hidden_states, shape_output
from .packing import RowPacking
from .router_loss import RouterLoss
from .scorers import IdleScorers
from .selection_inputs import SelectionInputs, check_recorded, observed_layer
from .teacher import ReductionPass, TeacherPass, append_teacher, own_stage_of
from .transformers_compat import (
    cache_in_output,
    cache_of,
    needs_positions,
    shorten_kept_prefill,
)

Output = Literal["expand", "compact"]
CPU = torch.device("cpu")


class Engine:
    """One model under reduction. `student` is its own pass; `teacher` runs in the same forwards where it is set."""

    def __init__(
        self, parts: ModelParts, reducers: Sequence[Reducer], output: Output, locator: AnswerLocator | None = None
    ) -> None:
        self.parts, self.output, self.locator = parts, output, locator
        self.student = ReductionPass(reducers)
        self.teacher: TeacherPass | None = None
        self.active = True
        self.seed = 0
        self.last: ForwardState | None = None  # of the last forward with images
        self.call = CallInputs()  # of the forward that is running
        self.prefetched: Mapping[str, Any] | None = None  # the next batch, on the host
        self.generation_mask: tuple[Tensor | None] | None = None  # [B, length], replaced by `generate` (static cache)
        self.visual: Tensor | None = None  # [B, L], of the next forward, where it has embeddings without ids
        self.generate_call: GenerateCall | None = None
        self.scorers: dict[int, nn.Module] = {}  # by the layer of the stage that they serve
        self.idle_scorers = IdleScorers(parts)
        self.shared: SharedChoice | None = None  # set while forwards share one choice
        self.expected_choices: RowChoices | None = None  # of the forward that is running
        self.task: TaskGradient | None = None  # set while scorers learn from the model's own loss
        self.packing = RowPacking(parts)
        self.timer = SelectionTimer()
        self.scale = FinalNormWeight(parts.norm)
        self.loss = ReducedLoss(parts.top.loss_function, compact=output == "compact")
        self.router_loss = RouterLoss(parts)
        self.deepstack = InlineDeepstack()
        self.inner_signature = inspect.signature(parts.inner.forward)
        self.active_stream = parts.active_stream
        self.masks = LayerMasks(parts)
        self.selection_inputs = SelectionInputs(parts, reducers, self.timer)

    @property
    def reducers(self) -> tuple[Reducer, ...]:
        return self.student.reducers

    @property
    def running_pass(self) -> ReductionPass:
        """The pass whose layer runs now."""
        return self.teacher if self.teacher is not None and self.teacher.running else self.student

    def register_hooks(self) -> list[Any]:
        """In the order of a forward; each returned handle removes one."""
        parts = self.parts
        self.packing.register_hooks()
        eager = torch.compiler.disable  # the rest of the model may be compiled; this is not
        handles = [
            parts.top.register_forward_pre_hook(eager(self.on_model_start), with_kwargs=True),
            parts.top.register_forward_hook(eager(self.on_model_end), always_call=True),
            parts.inner.register_forward_pre_hook(eager(self.on_inner_start), with_kwargs=True),
            parts.text.register_forward_hook(eager(self.on_decoder_end)),
            # After the decoder's: in some families it is the inner model.
            parts.inner.register_forward_hook(eager(self.on_inner_end), always_call=True),
            parts.norm.register_forward_hook(eager(self.scale.on_forward)),
        ]
        if adds_features_inside(parts.text):
            handles.append(parts.text.register_forward_pre_hook(eager(self.on_decoder_start), with_kwargs=True))
        for stage, layer in enumerate(self.selection_inputs.observed_layers):
            if layer is None:
                continue
            attention = parts.attention(layer)
            hook = eager(functools.partial(self.on_attention_start, stage, None))
            handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
            handles.append(attention.register_forward_hook(eager(remove_observer), always_call=True))
        for layer in range(self.reducers[0].layer, len(parts.layers)):
            hook = eager(functools.partial(self.on_reduced_layer, layer))
            handles.append(parts.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def own_teacher(self, reducer: Reducer) -> TeacherPass:
        """A teacher with a stage of its own."""
        if problem := why_not_teacher_stage(reducer, self.reducers[0]):
            raise ValueError(f"a teacher with {reducer.name}: {problem}")
        if not reducer.layer < len(self.parts.layers):
            raise ValueError(f"a teacher with layer={reducer.layer}: the model has {len(self.parts.layers)} layers")
        return TeacherPass([reducer], observed_layer(self.parts, [reducer], 0), reducer.per)

    def register_teacher_hooks(self, teacher: TeacherPass) -> list[Any]:
        """What a stage of the teacher's own selects by is observed in the teacher's pass. At the student's first layer
        that is known already, because the layers before run once for both."""
        layer, eager = teacher.observed_layer, torch.compiler.disable
        if layer is None or layer < self.reducers[0].layer:
            return []
        attention, hook = self.parts.attention(layer), functools.partial(self.on_attention_start, 0, teacher)
        return [
            attention.register_forward_pre_hook(eager(hook), with_kwargs=True),
            attention.register_forward_hook(eager(remove_observer), always_call=True),
        ]

    # start and end of a forward ------------------------------------------------------------------------------------

    def on_model_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.call = CallInputs.of(kwargs)
        self.loss.reset()
        if self.active and self.output == "compact" and isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep is a tensor of positions, which the short output does not have: "
                "attach with output='expand'"
            )
        return args, {name: value for name, value in kwargs.items() if name not in INPUTS}

    def on_model_end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.call = CallInputs()
        self.loss.reset()
        self.router_loss.restore()

    def on_inner_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.student.state, call, self.call = None, self.call, CallInputs()
        visual, self.visual = self.visual, None
        mask, self.generation_mask = self.generation_mask, None
        self.idle_scorers.start()
        if self.teacher is not None:
            self.teacher.start()
        if not self.active:
            return None
        inputs = kwargs
        if args:  # binding takes longer than all else that a decoding step does here
            inputs = {**self.inner_signature.bind_partial(*args, **kwargs).arguments}
            inputs |= inputs.pop("kwargs", {})
        if mask is not None:
            inputs = {**inputs, "attention_mask": mask[0]}
        prefetched, self.prefetched = self.prefetched, None
        if visual is None and not has_images(inputs) and CacheState.of(cache_of(inputs)) is None:
            self._share_choice(inputs)
            self.last = None  # text alone, or a token after a prefill that dropped nothing: the plain model
            return None
        with self.timer.running(next((x.device for x in inputs.values() if isinstance(x, Tensor)), CPU)):
            plan = plan_batch(
                inputs,
                call.labels,
                self.parts,
                self.reducers,
                self.generate_call,
                prefetched,
                call,
                self.locator,
                visual,
                self.packing.rows,
            )
        self.student.state = None if plan is None else ForwardState.start(plan)
        if plan is None or not plan.decoding:
            self.last = None
            self._share_choice(inputs)
        counted = position_ids_from_mask(plan, inputs, self.parts)
        if self.student.state is not None:
            self.student.state.positions_from_mask = bool(counted)
        if self.reducers[0].positions == "compact":
            counted = compact_position_ids(plan, inputs, counted)
        return args, {**kwargs, **last_state_alone(plan, inputs), **counted}

    def on_decoder_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Of a decoder that adds visual features to the inputs of later layers."""
        self.deepstack.clear()
        state = self.student.state
        return None if state is None or state.decoding else (args, self.deepstack.take(kwargs, self.reducers[0].layer))

    def on_inner_end(self, module: nn.Module, args: Any, output: Any) -> None:
        state, self.student.state = self.student.state, None
        if state is not None and state.reduced:
            state.memo.clear()
            self.last = state
            if self.shared is not None and state.plan.visual is not None:
                kept = RowChoices.of(state.plan.visual, [stage.kept.mask() for stage in state.stages])
                self.shared.compare(self.expected_choices, kept)

    def _share_choice(self, inputs: Mapping[str, Any]) -> None:
        """Takes the next rows of a choice that another forward has made."""
        ids, state = inputs.get("input_ids"), self.student.state
        if self.shared is None or ids is None or (state is None and ids.shape[1] == 1):
            return
        self.expected_choices = self.shared.take(len(ids))
        if state is not None and self.shared.enforced:
            state.chosen = self.expected_choices

    # layers --------------------------------------------------------------------------------------------------

    def on_attention_start(
        self, stage: int, teacher: TeacherPass | None, module: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """teacher: whose own stage it is; None: the student's, and of a teacher that shares its stages."""
        current = self.running_pass
        if teacher is not own_stage_of(current):
            return None
        return self.selection_inputs.record_attention(current, stage, module, args, kwargs)

    def on_reduced_layer(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer >= K, for whichever pass it runs: at K the selection is made, and everything of full length
        is gathered."""
        if self.teacher is not None and not self.teacher.running:
            self.teacher.run_layer(self.student.state, module, args, kwargs)  # comes back here, for the teacher
        current = self.running_pass
        state = current.state
        if state is None and not self.scorers and layer not in self.selection_inputs.own_row_stages:
            return None
        if (
            layer in self.selection_inputs.own_row_stages
            and own_stage_of(current) is None
            and (state is None or not state.decoding)
        ):
            self.selection_inputs.record_own_row(state, layer, module, args, kwargs)
        if state is None:
            if current is self.student:
                self.idle_scorers.run(self.scorers.get(layer), self._active(args[0]))
            return None
        if state.decoding and self.masks.keep_as_given(layer, self._active(args[0]), kwargs):
            return None
        hidden, stage = args[0], sum(reducer.layer <= layer for reducer in current.reducers) - 1
        if state.reduced:
            hidden = self.deepstack.add(layer, state.kept, hidden)
        elif own_stage_of(current) is not None:
            hidden = self.deepstack.add(layer, None, hidden)
        if stage < 0:  # a teacher before its own stage
            return (hidden, *args[1:]), kwargs
        if not state.decoding and len(state.stages) == stage:
            scorer = self.scorers.get(layer) if current is self.student else None
            hidden = self._reduce(state, stage, current.reducers[stage], hidden, scorer)
        new = hidden.shape[-2] if state.decoding else state.stages[stage].kept.source_length
        if state.decoding or not state.stages[stage].kept.keeps_all:
            check_selected_keys(self.parts.text_config, layer, state.plan.past + new)
        if not state.decoding and not state.plan.past:
            shorten_kept_prefill(cache_of(kwargs), layer, new, state.stages[stage].kept.length)
        kwargs = {**kwargs, "attention_mask": self.masks.make(state, stage, layer, self._active(hidden), kwargs)}
        if state.decoding:
            return (hidden, *args[1:]), kwargs
        gather_kwargs(state, stage, kwargs, needs_positions(module, self.parts.text_config))
        return (hidden, *gather_positional(state, stage, args[1:])), kwargs

    def _reduce(
        self, state: ForwardState, stage: int, reducer: Reducer, hidden: Tensor, scorer: nn.Module | None
    ) -> Tensor:
        teacher = own_stage_of(self.running_pass)
        check_recorded(
            state, self.selection_inputs.observed_layers[stage] if teacher is None else teacher.observed_layer
        )
        with self.timer.running(hidden.device):
            task, active = self.task if scorer is not None else None, self.parts.active_stream
            return state.reduce(reducer, hidden, self.scale.read(), self.seed, scorer, task, active)

    def _active(self, hidden: Tensor) -> Tensor:
        """[B, L, D]: of several streams the one that attention reads."""
        return hidden if self.active_stream is None else hidden[self.active_stream]

    # the output ----------------------------------------------------------------------------------------------

    def on_decoder_end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the decoder's final norm, before the head."""
        self.deepstack.clear()
        state, teacher = self.student.state, self.teacher
        reduced = state is not None and state.reduced
        if not reduced and teacher is None:
            return None
        states, targets = shape_output(state, output.last_hidden_state, self.loss.compact)
        if teacher is not None:
            final = teacher.final_states(self.parts.norm)
            states = append_teacher(states, shape_output(teacher.state, final, self.loss.compact)[0])
        output.last_hidden_state = states
        if getattr(output, "router_logits", None) is not None:
            self.router_loss.replace(
                state if reduced else None, [r.layer for r in self.reducers], with_teacher=teacher is not None
            )
        if state is not None and reduced and self.output == "expand":
            expand_hidden_states(state, output, [r.layer for r in self.reducers], self.active_stream is not None)
        if state is None or not reduced:
            self.loss.prepare(None, None, with_teacher=teacher is not None)
            return output
        rows = state.rows_of(len(state.stages) - 1)
        self.loss.prepare(state.kept, targets, with_teacher=teacher is not None, rows=rows)
        cache = cache_in_output(output)
        if cache is not None and not state.is_noop:
            first = self.parts.attention_layers()[0]
            store_cache_state(cache, state.cache_state(), sum(r.layer <= first for r in self.reducers) - 1)
        return output
