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

from ..common.environment import version_note
from ..models.structure import ModelParts
from ..reduction import Observed, Reducer
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
from .forward_state import ForwardState, TaskGradient
from .inline_deepstack import InlineDeepstack, adds_features_inside
from .masks import check_selected_keys, key_budgets, last_rows, layer_mask, layer_type
from .observers import (
    FinalNormWeight,
    RecordingAttentionConfig,
    RecordingCache,
    SelectionTimer,
    attention_row,
    remove_observer,
)
from .outputs import ReducedLoss, SupervisedTargets
from .own_row import run_to_kernel, shares_weights
from .packed_attention import PackedMask
from .packing import RowPacking
from .router_loss import RouterLoss
from .teacher import ReductionPass, TeacherPass, append_teacher
from .transformers_compat import (
    CACHE_NAMES,
    cache_argument,
    cache_in_output,
    cache_of,
    needs_positions,
    shorten_kept_prefill,
)

Output = Literal["expand", "compact"]
CPU = torch.device("cpu")
TOKEN_KEYWORDS = ("moe_mm_token_type_ids",)  # [B, L], one entry for each token
# Labels reach the layers of some families in **kwargs, where nothing reads them.
KNOWN_KEYWORDS = {"attention_mask", "position_embeddings", "position_ids", "labels", *TOKEN_KEYWORDS, *CACHE_NAMES}


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
        self.idle_scores: list[Tensor] = []  # zeros, of a batch without images
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
        layers = range(len(parts.layers))
        self.limits_keys = bool(key_budgets(parts.text_config))
        self.full_attention = {n for n in layers if layer_type(parts.text_config, n) == "full_attention"}
        self.recurrent = {n for n in layers if parts.is_recurrent(n)}
        self.sharing_keys = {n for n in layers if parts.key_source(n) != n}
        own = [number for number, r in enumerate(reducers) if "own_attention" in r.required_inputs()]
        self.own_row_stages = {reducers[stage].layer: stage for stage in own}
        self.observed_layers = [observed_layer(parts, reducers, stage) for stage in range(len(reducers))]

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
        for stage, layer in enumerate(self.observed_layers):
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
        self.idle_scores = []
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
        """Before the attention that a stage observes: it gets a cache, and where needed a config, that record.
        teacher: whose own stage it is; None: the student's, and of a teacher that shares its stages."""
        current = self.running_pass
        if teacher is not _own_stage_of(current):
            return None
        state = current.state
        if state is None or state.decoding:
            return None
        if len(state.stages) != stage:
            return None
        if "attention" in current.reducers[stage].required_inputs():
            record_row = torch.compiler.disable(functools.partial(self._record_attention_row, state))
            module.config = RecordingAttentionConfig(module.config, record_row)
        record = torch.compiler.disable(functools.partial(_record_keys, state))
        return args, {
            **kwargs,
            cache_argument(module.forward): RecordingCache(cache_of(kwargs), record, self.parts.text_config),
        }

    def _record_attention_row(
        self, state: ForwardState, module: nn.Module, query: Tensor, key: Tensor, scaling: Any, softcap: Any
    ) -> None:
        groups, real = state.groups, state.real
        assert groups is not None and real is not None
        window = getattr(module, "sliding_window", None)
        key = key[:, :, : state.plan.past + query.shape[2]]  # those of a static cache come with empty slots
        with self.timer.running(key.device):
            row = attention_row(
                query.detach(),
                key.detach(),
                groups.sequence_of,
                groups.last,
                groups.seen_by(real),
                scaling,
                softcap,
                window,
            )
        state.observed = Observed(state.observed.keys, state.observed.values, row)

    def on_reduced_layer(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer >= K, for whichever pass it runs: at K the selection is made, and everything of full length
        is gathered."""
        if self.teacher is not None and not self.teacher.running:
            self.teacher.run_layer(self.student.state, module, args, kwargs)  # comes back here, for the teacher
        current = self.running_pass
        state = current.state
        if state is None and not self.scorers and layer not in self.own_row_stages:
            return None
        if layer in self.own_row_stages and _own_stage_of(current) is None and (state is None or not state.decoding):
            self._observe_own_row(layer, module, args, kwargs)
        if state is None:
            self._run_idle_scorer(layer, current, self._active(args[0]))
            return None
        if state.decoding and (layer in self.recurrent or self._decodes_unmasked(layer, args, kwargs)):
            return None
        hidden, stage = args[0], sum(reducer.layer <= layer for reducer in current.reducers) - 1
        if state.reduced:
            hidden = self.deepstack.add(layer, state.kept, hidden)
        elif _own_stage_of(current) is not None:
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
        kwargs = {**kwargs, "attention_mask": self._mask(state, stage, layer, self._active(hidden), kwargs)}
        if state.decoding:
            return (hidden, *args[1:]), kwargs
        _gather_kwargs(state, stage, kwargs, needs_positions(module, self.parts.text_config))
        return (hidden, *_gather_positional(state, stage, args[1:])), kwargs

    def _reduce(
        self, state: ForwardState, stage: int, reducer: Reducer, hidden: Tensor, scorer: nn.Module | None
    ) -> Tensor:
        teacher = _own_stage_of(self.running_pass)
        observed = self.observed_layers[stage] if teacher is None else teacher.observed_layer
        if observed is not None and state.observed.keys is None:
            raise RuntimeError(_keys_not_observed(observed))
        with self.timer.running(hidden.device):
            task, active = self.task if scorer is not None else None, self.parts.active_stream
            return state.reduce(reducer, hidden, self.scale.read(), self.seed, scorer, task, active)

    def _observe_own_row(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """The row of layer K's own attention, before it runs. A rank without images takes part where ranks share the
        layer's weights."""
        state, attention = self.running_pass.state, self.parts.attention(layer)
        if state is None:
            if shares_weights(module):
                run_to_kernel(module, attention, args, kwargs, None)
            return
        stage = self.own_row_stages[layer]
        if len(state.stages) != stage:
            return
        if stage:  # what a layer is given is of full length; its input is that of the stage before
            kwargs = dict(kwargs)
            _gather_kwargs(state, stage - 1, kwargs, needs_positions(module, self.parts.text_config))
            args = (args[0], *_gather_positional(state, stage - 1, args[1:]))
        record = functools.partial(self._record_attention_row, state)
        run_to_kernel(module, attention, args, kwargs, record)

    def _decodes_unmasked(self, layer: int, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """One new token of one row sees its entire cache, and the model gives no mask: nothing changes."""
        if layer not in self.full_attention or kwargs.get("attention_mask") is not None:
            return False
        return bool(self._active(args[0]).shape[:2] == (1, 1)) and not self.limits_keys

    def _active(self, hidden: Tensor) -> Tensor:
        """[B, L, D]: of several streams the one that attention reads."""
        return hidden if self.active_stream is None else hidden[self.active_stream]

    def _run_idle_scorer(self, layer: int, current: ReductionPass, hidden: Tensor) -> None:
        """While a scorer trains, each rank runs it in each step: ZeRO and DDP wait for its weights and gradients."""
        scorer = self.scorers.get(layer)
        if scorer is None or current is not self.student or not torch.is_grad_enabled():
            return
        if any(weight.requires_grad for weight in scorer.parameters()):
            nothing = hidden.detach()[:1, :1]
            self.idle_scores.append(0.0 * scorer(nothing, nothing[:, 0]).sum())

    def idle_loss(self) -> Tensor:
        device = next(self.parts.text.parameters()).device
        return sum(self.idle_scores, torch.zeros((), device=device))

    def _mask(self, state: ForwardState, stage: int, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        """Layers of one stage that are given the same mask share the short one. A layer that shares the keys of an
        earlier one shares its mask, too: the cache of these keys has grown since."""
        config, given, rows = self.parts.text_config, kwargs.get("attention_mask"), None
        if isinstance(given, PackedMask):
            given, rows = given.mask, state.rows_of(stage)
        kind = layer_type(config, layer)
        key, latest = (stage, kind, id(given)), ("latest mask", stage, kind)
        if layer not in self.sharing_keys:
            if key not in state.memo:
                state.memo[key] = (given, layer_mask(state, stage, given, cache_of(kwargs), hidden, config, layer))
            state.memo[latest] = state.memo[key]
        mask = last_rows(state.memo[latest][1], hidden.shape[1])
        return mask if rows is None else PackedMask(mask, rows)

    # the output ----------------------------------------------------------------------------------------------

    def on_decoder_end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the decoder's final norm, before the head."""
        self.deepstack.clear()
        state, teacher = self.student.state, self.teacher
        reduced = state is not None and state.reduced
        if not reduced and teacher is None:
            return None
        states, targets = self._shape_output(state, output.last_hidden_state)
        if teacher is not None:
            final = teacher.final_states(self.parts.norm)
            states = append_teacher(states, self._shape_output(teacher.state, final)[0])
        output.last_hidden_state = states
        if getattr(output, "router_logits", None) is not None:
            self.router_loss.replace(
                state if reduced else None, [r.layer for r in self.reducers], with_teacher=teacher is not None
            )
        if state is not None and reduced and self.output == "expand":
            self._expand_hidden_states(state, output)
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

    def _expand_hidden_states(self, state: ForwardState, output: Any) -> None:
        """output_hidden_states=True: entry i > 0 is the output of layer i - 1, the last one after the final norm; entry
        0 is the input of layer 0, which a reduction at K = 0 has shortened."""
        entries = getattr(output, "hidden_states", None)
        if not entries:
            return
        expanded = []
        for number, entry in enumerate(entries):
            stages = sum(reducer.layer < max(number, 1) for reducer in self.reducers)
            if stages and entry is not None:
                kept, several = state.stages[stages - 1].kept, entry.ndim == 4 and self.parts.active_stream is not None
                entry = torch.stack([kept.expand(one) for one in entry]) if several else kept.expand(entry)
            expanded.append(entry)
        output.hidden_states = tuple(expanded)

    def _shape_output(self, state: ForwardState | None, states: Tensor) -> tuple[Tensor, SupervisedTargets | None]:
        """The states that the head runs on. Compact with labels: those of supervised positions only."""
        if state is None or not state.reduced or states.shape[1] != state.kept.length:  # the last state alone
            return states, None
        if self.output == "expand":
            return state.kept.expand(states), None
        plan = state.plan
        if plan.labels is None or plan.layout is None:
            return states, None
        targets = SupervisedTargets.of(plan.layout, state.kept, plan.labels, plan.packed)
        return (states, None) if targets is None else (targets.gather(states), targets)


def _own_stage_of(current: ReductionPass) -> TeacherPass | None:
    """The pass, if it is that of a teacher with a stage of its own."""
    return current if isinstance(current, TeacherPass) and current.has_own_stage else None


def observed_layer(parts: ModelParts, reducers: Sequence[Reducer], stage: int) -> int | None:
    """The layer whose keys, values and attention a stage selects by: the last one before its K that has them, and that
    runs on the stage's own input. None where the stage needs none, or there is none (scores are then those of the
    hidden states)."""
    if not reducers[stage].required_inputs() - {"grid", "own_attention", "scorer"}:
        return None
    before = parts.attention_layers(reducers[stage - 1].layer if stage else 0, reducers[stage].layer)
    return before[-1] if before else None


def _record_keys(state: ForwardState, key: Tensor, value: Tensor) -> None:
    state.observed = Observed(key.detach(), value.detach(), state.observed.attention)


def _gather_kwargs(state: ForwardState, stage: int, kwargs: dict[str, Any], with_positions: bool) -> None:
    """The rotary embeddings carry the kept tokens' own positions; position ids with gaps would make flash attention
    believe in packed sequences, so only layers that compute with them get them."""
    kept, places = state.stages[stage].kept, state.kept_positions(stage)
    length, rotary = kept.source_length, kwargs.get("position_embeddings")
    if isinstance(rotary, Tensor):  # Llama 4 has one tensor of complex numbers
        kwargs["position_embeddings"] = state.gather_rotary(rotary, stage) if rotary.shape[-2] == length else rotary
    elif rotary is not None:
        kwargs["position_embeddings"] = tuple(
            state.gather_rotary(t, stage) if t.shape[-2] == length else t for t in rotary
        )
    positions = kwargs.get("position_ids")
    if rotary is None and positions is None and state.compact_places is not None:
        raise NotImplementedError(
            "positions='compact': the decoder layers are given neither rotary embeddings nor position ids, so that the "
            "positions of tokens cannot be changed; use positions='original'"
        )
    if positions is not None:
        wanted = (with_positions or rotary is None) and positions.shape[-1] == length
        kwargs["position_ids"] = places.gather(positions, -1, positions.ndim - 2) if wanted else None
    for name in TOKEN_KEYWORDS:
        if kwargs.get(name) is not None:
            kwargs[name] = kept.gather(kwargs[name])
    unknown = [
        name
        for name, x in kwargs.items()
        if name not in KNOWN_KEYWORDS and isinstance(x, Tensor) and x.ndim > 1 and length in x.shape[1:3]
    ]
    if unknown and not kept.keeps_all:
        raise NotImplementedError(
            f"a decoder layer is given {', '.join(unknown)} of full length {length}, which the reduction does not "
            "know how to shorten"
        )


def _gather_positional(state: ForwardState, stage: int, args: Sequence[Any]) -> list[Any]:
    """What a layer is given besides the hidden states: tensors [B or 1, L, ...], such as Gemma 4's per-layer inputs,
    and rotary embeddings."""
    kept, short = state.stages[stage].kept, list[Any]()
    for x in args:
        if isinstance(x, tuple):
            x = tuple(state.gather_rotary(t, stage) for t in x)
        elif isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] == kept.source_length:
            x = kept.gather(x)
        short.append(x)
    return short


def _keys_not_observed(layer: int) -> str:
    happened = f"the keys of layer {layer} were not observed"
    if note := version_note():
        return f"{happened}. The likely cause: {note}"
    return (
        f"{happened}. Under torch.compile set torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling."
    )
