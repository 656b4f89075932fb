"""The hooks: where a forward is seen, layer by layer, and what is done there. No method and no family is known
here, no modeling file is copied and no class is swapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.environment import version_note
from ..models.structure import ModelParts
from ..reduction import Observed, Reducer
from . import forward_state as memory
from . import masks
from .forward_state import ForwardState
from .observers import FinalNormWeight, RecordingAttentionConfig, RecordingCache, SelectionTimer, attention_row
from .outputs import Loss, Targets
from .plan_batch import plan_batch, positions
from .teacher import TeacherPass, beside
from .transformers_compat import CACHE_NAMES, cache_argument, cache_in_output, cache_of

Output = Literal["expand", "compact"]
CPU = torch.device("cpu")
KEYWORDS = {"attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES}


class Engine:
    """One model under reduction. `flight` is the forward that is under way, None outside of any."""

    def __init__(self, parts: ModelParts, reducers: Sequence[Reducer], output: Output) -> None:
        self.parts, self.reducers, self.output = parts, tuple(reducers), output
        self.active = True
        self.seed = 0
        self.flight: ForwardState | None = None
        self.last: ForwardState | None = None
        self.labels: Tensor | None = None
        self.expected: Mapping[str, Any] | None = None  # what `expect` was told, on the host
        self.prompt: tuple[int, int] | None = None  # (rows, length) of the prompt that `generate` was given
        self.generating: Mapping[str, Any] = {}
        self.companion: TeacherPass | None = None
        self.watch = SelectionTimer()
        self.scale = FinalNormWeight(parts.norm)
        self.loss = Loss(parts.top.loss_function, output == "compact")
        self.signature = inspect.signature(parts.inner.forward)

    def hooks(self) -> list[Any]:
        """Registered in the order of a forward; each returned handle removes one."""
        parts, eager = (
            self.parts,
            torch.compiler.disable,
        )  # the rest of the model may be compiled; this is not
        handles = [
            parts.top.register_forward_pre_hook(eager(self.before_all), with_kwargs=True),
            parts.top.register_forward_hook(eager(self.after_all), always_call=True),
            parts.inner.register_forward_pre_hook(eager(self.before), with_kwargs=True),
            parts.inner.register_forward_hook(eager(self.after), always_call=True),
            parts.text.register_forward_hook(eager(self.after_text)),
            parts.norm.register_forward_hook(eager(self.scale.seen)),
        ]
        for layer in {r.layer - 1 for r in self.reducers if r.layer > 0 and r.required_inputs() - {"grid"}}:
            attention = parts.attention(layer)
            handles.append(attention.register_forward_pre_hook(self._for(self.tap, layer), with_kwargs=True))
            handles.append(attention.register_forward_hook(eager(remove_observer), always_call=True))
        for layer in range(self.reducers[0].layer, len(parts.layers)):
            hook = self._for(self.short_layer, layer)
            handles.append(parts.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    @staticmethod
    def _for(method: Callable[..., Any], layer: int) -> Callable[..., Any]:
        return torch.compiler.disable(lambda module, args, kwargs: method(layer, module, args, kwargs))

    def stage_of(self, layer: int) -> int:
        return sum(reducer.layer <= layer for reducer in self.reducers) - 1

    # the whole model -----------------------------------------------------------------------------------------

    def before_all(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.labels = kwargs.get("labels")
        self.loss.expect(None, None)
        if self.active and self.output == "compact" and isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep is a tensor of positions, which the short output does not have: "
                "attach with output='expand'"
            )

    def after_all(self, module: nn.Module, args: Any, output: Any) -> None:
        self.labels = None
        self.loss.expect(None, None)

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.flight, labels, self.labels = None, self.labels, None
        if self.companion is not None:
            self.companion.begin()
        if not self.active:
            return None
        inputs = {**self.signature.bind_partial(*args, **kwargs).arguments}
        inputs |= inputs.pop("kwargs", {})
        with self.watch.running(next((x.device for x in inputs.values() if isinstance(x, Tensor)), CPU)):
            self.flight = plan_batch(self, inputs, labels)
        if self.flight is None or not self.flight.decoding:
            self.last = None
        return args, {**kwargs, **positions(self, inputs)}

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        flight, self.flight = self.flight, None
        if flight is not None and not flight.decoding and flight.kept:
            flight.memo.clear()
            self.last = flight

    # layers --------------------------------------------------------------------------------------------------

    def tap(self, layer: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before the attention of layer K-1."""
        flight = self.flight
        if flight is None or flight.decoding:
            return None
        stage = next(s for s, reducer in enumerate(self.reducers) if reducer.layer == layer + 1)
        if len(flight.kept) != stage:
            return None
        if "attention" in self.reducers[stage].required_inputs():
            module.config = RecordingAttentionConfig(module.config, torch.compiler.disable(self._see_row))
        sink = torch.compiler.disable(self._see)
        return args, {**kwargs, cache_argument(module.forward): RecordingCache(cache_of(kwargs), sink)}

    def _see(self, key: Tensor, value: Tensor) -> None:
        flight = self.flight
        assert flight is not None
        flight.seen = Observed(key.detach(), value.detach(), flight.seen.attention)

    def _see_row(self, module: nn.Module, query: Tensor, key: Tensor, scaling: Any, softcap: Any) -> None:
        flight = self.flight
        assert flight is not None and flight.pools is not None and flight.real is not None
        pools, window = flight.pools, getattr(module, "sliding_window", None)
        with self.watch.running(key.device):
            row = attention_row(
                query.detach(), key.detach(), pools.row_of, pools.last, flight.real, scaling, softcap, window
            )
        flight.seen = Observed(flight.seen.keys, flight.seen.values, row)

    def short_layer(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer >= K: at K the choice is made; everything of full length follows it."""
        if self.companion is not None and not self.companion.running:
            self.companion.run(self, module, args, kwargs)
        flight = self.flight
        if flight is None:
            return None
        hidden, stage = args[0], self.stage_of(layer)
        if not flight.decoding and len(flight.kept) == stage:
            hidden = self._reduce(flight, stage, hidden)
        kwargs = {**kwargs, "attention_mask": self._mask(flight, stage, layer, hidden, kwargs)}
        if not flight.decoding:
            self._follow(flight, stage, kwargs)
        return (hidden, *args[1:]), kwargs

    def _reduce(self, flight: ForwardState, stage: int, hidden: Tensor) -> Tensor:
        reducer = self.reducers[stage]
        if reducer.layer and reducer.required_inputs() - {"grid"} and flight.seen.keys is None:
            raise RuntimeError(_keys_not_seen(reducer.layer - 1))
        with self.watch.running(hidden.device):
            return flight.reduce(reducer, hidden, self.scale.read(), self.seed)

    @staticmethod
    def _follow(flight: ForwardState, stage: int, kwargs: dict[str, Any]) -> None:
        """The rotary embeddings carry the kept tokens' own positions; position ids with gaps would make flash
        attention believe in packed sequences."""
        length = flight.kept[stage].source_length
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = tuple(flight.follow(t, stage) for t in kwargs["position_embeddings"])
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = None
        unknown = [
            name
            for name, x in kwargs.items()
            if name not in KEYWORDS and isinstance(x, Tensor) and x.ndim > 1 and length in x.shape[1:3]
        ]
        if unknown:
            raise NotImplementedError(
                f"a decoder layer is given {', '.join(unknown)} of full length {length}, which the reduction does not "
                "know how to shorten"
            )

    def _mask(self, flight: ForwardState, stage: int, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        config, given = self.parts.text_config, kwargs.get("attention_mask")
        key = (stage, masks.layer_type(config, layer), id(given))
        if key not in flight.memo:
            cache = cache_of(kwargs)
            flight.memo[key] = (given, masks.layer_mask(flight, stage, given, cache, hidden, config, layer))
        return flight.memo[key][1]

    # the way out ---------------------------------------------------------------------------------------------

    def after_text(self, module: nn.Module, args: Any, output: Any) -> Any:
        flight, companion = self.flight, self.companion
        reduced = flight is not None and not flight.decoding and bool(flight.kept)
        if not reduced and companion is None:
            return None
        states, targets = self._leaving(flight, output.last_hidden_state)
        if companion is not None:
            states = beside(states, self._leaving(companion.flight, companion.states(self.parts.norm))[0])
        output.last_hidden_state = states
        kept = flight.kept[-1] if reduced and flight is not None else None
        self.loss.expect(kept, targets, twice=companion is not None)
        cache = cache_in_output(output)
        if kept is not None and flight is not None and cache is not None and not flight.is_noop:
            memory.remember(cache, flight.cache_state(), self.reducers[0].layer == 0)
        return output

    def _leaving(self, flight: ForwardState | None, states: Tensor) -> tuple[Tensor, Targets | None]:
        if flight is None or flight.decoding or not flight.kept:
            return states, None
        if self.output == "expand":
            return flight.kept[-1].expand(states), None
        if flight.labels is None:
            return states, None
        assert flight.batch is not None
        targets = Targets.of(flight.batch, flight.kept[-1], flight.labels)
        return (states, None) if targets is None else (targets.states(states), targets)


def _keys_not_seen(layer: int) -> str:
    happened = f"the keys of layer {layer} were not seen"
    if note := version_note():
        return f"{happened}. The likely cause: {note}"
    return (
        f"{happened}. Under torch.compile set torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling."
    )


def remove_observer(module: Any, args: Any, output: Any) -> None:
    """An attention that raised before its kernel still holds the stand-in."""
    if isinstance(getattr(module, "config", None), RecordingAttentionConfig):
        module.config = module.config.original
