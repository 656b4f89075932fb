"""The hooks: where a forward is seen, layer by layer, and what is done there. No method and no family is known
here, no modeling file is copied and no class is swapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..layout import Batch
from ..pools import Pools, upload
from ..reducers import Reducer, Seen
from . import masks, memory
from .anatomy import Anatomy
from .flight import Flight
from .intake import Grids, check_cache, check_inputs, has_images, pool_shapes, two_dimensional
from .norm import FinalScale
from .outputs import Loss, Targets
from .tap import CacheTap, RowConfig, attention_row

Output = Literal["expand", "compact"]
KEYWORDS = {"attention_mask", "position_embeddings", "position_ids", "past_key_values"}


class Engine:
    """One model under reduction. `flight` is the forward that is under way, None outside of any."""

    def __init__(self, parts: Anatomy, reducers: Sequence[Reducer], output: Output) -> None:
        self.parts, self.reducers, self.output = parts, tuple(reducers), output
        self.active = True
        self.seed = 0
        self.flight: Flight | None = None
        self.last: Flight | None = None
        self.labels: Tensor | None = None
        self.expected: Batch | None = None
        self.prompt: tuple[int, int] | None = None  # (rows, length) of the prompt that `generate` was given
        self.generating: Mapping[str, Any] = {}
        self.scale = FinalScale(parts.norm)
        self.loss = Loss(parts.top.loss_function, output == "compact")
        self.signature = inspect.signature(parts.inner.forward)

    def hooks(self) -> list[Any]:
        """Registered in the order of a forward; each returned handle removes one."""
        parts = self.parts
        handles = [
            parts.top.register_forward_pre_hook(self.before_all, with_kwargs=True),
            parts.top.register_forward_hook(self.after_all, always_call=True),
            parts.inner.register_forward_pre_hook(self.before, with_kwargs=True),
            parts.inner.register_forward_hook(self.after, always_call=True),
            parts.text.register_forward_hook(self.after_text),
            parts.norm.register_forward_hook(self.scale.seen),
        ]
        for layer in {r.layer - 1 for r in self.reducers if r.layer > 0 and r.required()}:
            attention = parts.attention(layer)
            handles.append(attention.register_forward_pre_hook(self._for(self.tap, layer), with_kwargs=True))
            handles.append(attention.register_forward_hook(untap, always_call=True))
        for layer in range(self.reducers[0].layer, len(parts.layers)):
            hook = self._for(self.short_layer, layer)
            handles.append(parts.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    @staticmethod
    def _for(method: Callable[..., Any], layer: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: method(layer, module, args, kwargs)

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
        if not self.active:
            return None
        inputs = {**self.signature.bind_partial(*args, **kwargs).arguments}
        inputs |= inputs.pop("kwargs", {})
        self.flight = self._take_off(inputs, labels)
        if self.flight is None or not self.flight.decoding:
            self.last = None
        return self._with_positions(args, kwargs, inputs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        flight, self.flight = self.flight, None
        if flight is not None and not flight.decoding and flight.kept:
            flight.memo.clear()
            self.last = flight

    # taking a forward apart ----------------------------------------------------------------------------------

    def _take_off(self, inputs: Mapping[str, Any], labels: Tensor | None) -> Flight | None:
        cache = inputs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        remembered = memory.Memory.of(cache) if past else None
        if not has_images(inputs):
            return None if remembered is None else Flight(two_dimensional(inputs.get("attention_mask")), remembered)
        ids, mask = check_inputs(inputs, labels), two_dimensional(inputs.get("attention_mask"))
        if past and self.parts.family.bidirectional_images:
            raise NotImplementedError("a picture behind a filled cache, in a model whose pictures look both ways")
        flight = Flight(mask, remembered, past, labels=labels)
        flight.batch = self._batch(ids, None if mask is None else mask[:, past:], labels, past)
        self._lay_out(flight, inputs, ids.device)
        return flight if flight.pools is not None else None

    def _batch(self, ids: Tensor, mask: Tensor | None, labels: Tensor | None, past: int) -> Batch:
        expected, self.expected = self.expected, None
        if expected is not None:
            if expected.shape != tuple(ids.shape):
                raise ValueError(f"expect() was told of a batch {expected.shape}, but {tuple(ids.shape)} came in")
            return expected
        prompt = None if self.prompt is None else self.prompt[1] - past
        return Batch.of(ids, self.parts.visual_ids, mask, labels, prompt)

    def _lay_out(self, flight: Flight, inputs: Mapping[str, Any], device: torch.device) -> None:
        batch, per = flight.batch, self.reducers[0].per
        assert batch is not None
        needs_grid = any("grid" in r.required() for r in self.reducers)
        if needs_grid or per == "image":
            rows = None if self.prompt is None else self.prompt[0]
            given = {name: value for name, value in inputs.items() if value is not None}
            grids = Grids(self.parts, {**self.generating, **given}, rows)
            sizes = grids.image_sizes(batch)
            flight.batch = batch = batch if sizes is None else batch.with_images(sizes)
            if needs_grid:
                flight.grid_shapes = pool_shapes(grids.of(batch), batch, per)
        pools = Pools.of(batch, per)
        if pools is not None:
            flight.pools = pools.to(device)
            flight.real, flight.visual = upload(batch.real, device), upload(batch.visual, device)

    def _with_positions(self, args: Any, kwargs: dict[str, Any], inputs: Mapping[str, Any]) -> Any:
        """Left padding without position ids would move the rotary keys, and so the pivots: count from the mask."""
        flight = self.flight
        if flight is None or flight.batch is None or flight.past or self.parts.family.own_positions:
            return None
        if inputs.get("position_ids") is not None or not flight.batch.left_padded():
            return None
        assert flight.real is not None
        positions = (flight.real.long().cumsum(1) - 1).clamp_min(0)
        return args, {**kwargs, "position_ids": positions}

    # layers --------------------------------------------------------------------------------------------------

    def tap(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before the attention of layer K-1."""
        flight = self.flight
        if flight is None or flight.decoding:
            return None
        stage = next(s for s, reducer in enumerate(self.reducers) if reducer.layer == layer + 1)
        if len(flight.kept) != stage:
            return None
        if "attention" in self.reducers[stage].required():
            module.config = RowConfig(module.config, self._see_row)
        return args, {**kwargs, "past_key_values": CacheTap(kwargs.get("past_key_values"), self._see)}

    def _see(self, key: Tensor, value: Tensor) -> None:
        flight = self.flight
        assert flight is not None
        flight.seen = Seen(key.detach(), value.detach(), flight.seen.attention)

    def _see_row(self, module: nn.Module, query: Tensor, key: Tensor, scaling: Any, softcap: Any) -> None:
        flight = self.flight
        assert flight is not None and flight.pools is not None and flight.real is not None
        pools, window = flight.pools, getattr(module, "sliding_window", None)
        row = attention_row(
            query.detach(), key.detach(), pools.rows, pools.last, flight.real, scaling, softcap, window
        )
        flight.seen = Seen(flight.seen.keys, flight.seen.values, row)

    def short_layer(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer >= K: at K the choice is made; everything of full length follows it."""
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

    def _reduce(self, flight: Flight, stage: int, hidden: Tensor) -> Tensor:
        reducer = self.reducers[stage]
        if reducer.layer and reducer.required() - {"grid"} and flight.seen.keys is None:
            raise RuntimeError(
                f"the keys of layer {reducer.layer - 1} were not seen. Under torch.compile set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling."
            )
        return flight.reduce(reducer, hidden, self.scale.read(), self.seed)

    @staticmethod
    def _follow(flight: Flight, stage: int, kwargs: dict[str, Any]) -> None:
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

    def _mask(self, flight: Flight, stage: int, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        config, given = self.parts.text_config, kwargs.get("attention_mask")
        key = (stage, masks.layer_type(config, layer), id(given))
        if key not in flight.memo:
            flight.memo[key] = (given, self._new_mask(flight, stage, layer, hidden, kwargs))
        return flight.memo[key][1]

    def _new_mask(self, flight: Flight, stage: int, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        config, given, cache = self.parts.text_config, kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if not flight.decoding and not flight.past:
            kept = flight.kept[stage]
            by_position = isinstance(given, Tensor) and given.ndim == 4
            masks.check_window(config, layer, kept.source_length, gathered=by_position and cache is None)
            return masks.short_mask(given, kept, hidden, config, layer)
        check_cache(cache)
        held, new = memory.held_by(cache, layer), hidden.shape[1]
        masks.check_window(config, layer, held + new)
        if flight.decoding:
            assert flight.memory is not None
            valid = flight.memory.short_valid(stage, flight.mask, new, held)
        else:
            valid = torch.cat([flight.past_valid(stage), flight.kept[stage].valid], 1)
        if valid is not None and valid.shape[0] == 1:
            valid = None  # one row has no padding once it is short
        return masks.build(config, hidden, valid, cache, layer)

    # the way out ---------------------------------------------------------------------------------------------

    def after_text(self, module: nn.Module, args: Any, output: Any) -> Any:
        flight = self.flight
        if flight is None or flight.decoding or not flight.kept:
            return None
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            memory.remember(cache, flight.to_remember(), self.reducers[0].layer == 0)
        kept, targets = flight.kept[-1], None
        if self.output == "expand":
            output.last_hidden_state = kept.expand(output.last_hidden_state)
        elif flight.labels is not None:
            assert flight.batch is not None
            targets = Targets.of(flight.batch, kept, flight.labels)
            if targets is not None:
                output.last_hidden_state = targets.states(output.last_hidden_state)
        self.loss.expect(kept, targets)
        return output


def untap(module: nn.Module, args: Any, output: Any) -> None:
    """An attention that raised before its kernel still holds the stand-in."""
    if isinstance(getattr(module, "config", None), RowConfig):
        module.config = module.config.original
