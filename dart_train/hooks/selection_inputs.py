"""What a stage selects by besides the hidden states, recorded before its layer runs: keys and values of the last
attention before it, and a row of attention weights, of that layer or of layer K itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..common.environment import version_note
from ..models.structure import ModelParts
from ..reduction import Observed, Reducer
from .forward_state import ForwardState
from .layer_inputs import gather_kwargs, gather_positional
from .observers import RecordingAttentionConfig, RecordingCache, SelectionTimer, attention_row
from .own_row import run_to_kernel, shares_weights
from .teacher import ReductionPass
from .transformers_compat import cache_argument, cache_of, needs_positions


class SelectionInputs:
    """Records into the state of whichever pass runs. observed_layers: for each stage as in `observed_layer`.
    own_row_stages: layer K -> the stage that selects by the attention of that layer itself."""

    def __init__(self, parts: ModelParts, reducers: Sequence[Reducer], timer: SelectionTimer) -> None:
        self.parts, self.timer = parts, timer
        own = [number for number, r in enumerate(reducers) if "own_attention" in r.required_inputs()]
        self.own_row_stages = {reducers[stage].layer: stage for stage in own}
        self.observed_layers = [observed_layer(parts, reducers, stage) for stage in range(len(reducers))]

    def record_attention(self, current: ReductionPass, stage: int, module: Any, args: Any, kwargs: Any) -> Any:
        """Before the attention that a stage observes: it gets a cache, and where needed a config, that record."""
        state = current.state
        if state is None or state.decoding:
            return None
        if len(state.stages) != stage:
            return None
        if "attention" in current.reducers[stage].required_inputs():
            record_row = torch.compiler.disable(functools.partial(self._record_row, state))
            module.config = RecordingAttentionConfig(module.config, record_row)
        record = torch.compiler.disable(functools.partial(_record_keys, state))
        return args, {
            **kwargs,
            cache_argument(module.forward): RecordingCache(cache_of(kwargs), record, self.parts.text_config),
        }

    def record_own_row(
        self, state: ForwardState | None, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """The row of layer K's own attention, before it runs. A rank without images takes part where ranks share the
        layer's weights."""
        attention = self.parts.attention(layer)
        if state is None:
            if shares_weights(module):
                run_to_kernel(module, attention, args, kwargs, None)
            return
        stage = self.own_row_stages[layer]
        if len(state.stages) != stage:
            return
        if stage:  # what a layer is given is of full length; its input is that of the stage before
            kwargs = dict(kwargs)
            gather_kwargs(state, stage - 1, kwargs, needs_positions(module, self.parts.text_config))
            args = (args[0], *gather_positional(state, stage - 1, args[1:]))
        record = functools.partial(self._record_row, state)
        run_to_kernel(module, attention, args, kwargs, record)

    def _record_row(
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


def check_recorded(state: ForwardState, observed: int | None) -> None:
    """Before a selection. observed: the layer whose keys it needs."""
    if observed is None or state.observed.keys is not None:
        return
    happened = f"the keys of layer {observed} were not observed"
    if note := version_note():
        raise RuntimeError(f"{happened}. The likely cause: {note}")
    raise RuntimeError(
        f"{happened}. Under torch.compile set torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling."
    )
