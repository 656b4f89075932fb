"""The hooks of a stage in the vision tower: units leave before a block, and their features return after the last one.

| where                 | what happens                                                                                |
| --------------------- | ------------------------------------------------------------------------------------------- |
| the tower starts      | sizes of the images; with `tolerance` the choice, by pixels                                 |
| block `layer`         | with `keep` the choice, by states; states of dropped units leave                            |
| each block from there | `cu_seqlens` and rotary embeddings (packed), or the mask of ragged rows, follow             |
| each merger           | each dropped unit takes the output of its representative (packed)                           |
| the tower ends        | its states have their full length again                                                     |

Where nothing is dropped, no tensor is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.towers import TowerParts, attention_mask_of, uses_flash_attention
from ..reduction.token_groups import upload
from ..reduction.tower import Representatives, TowerDART, choose_by_states, match_pixels
from .patcher import ObjectPatcher

PERMUTE = "permute_input_for_window_attn"  # Qwen2.5-VL: units move into windows before the first block
PIXELS_AND_GRIDS = (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))


class TowerCall:
    """One run of the tower. sizes: units of each image or frame; chosen: None until the choice; order [U]: the unit in
    each place, where the tower moves units."""

    def __init__(self, sizes: Sequence[int], by_pixels: Representatives | None) -> None:
        self.sizes, self.by_pixels = tuple(sizes), by_pixels
        self.order: Tensor | None = None
        self.chosen: Representatives | None = None
        self.mask: Tensor | None = None  # [B, prefix + M] bool, of ragged rows
        self.short = 0  # states of a row, or of the packed tensor, after the choice
        self._memo: dict[Any, tuple[Any, Any]] = {}
        self._expand: Tensor | None = None

    def remember(self, value: Any, make: Callable[[Any], Any]) -> Any:
        """make(value), once for each object; it is held, so that its id stays its own."""
        if id(value) not in self._memo:
            self._memo[id(value)] = (value, make(value))
        return self._memo[id(value)][1]

    # packed: rows of [N, D] ------------------------------------------------------------------------------------------

    def shorten_rows(self, x: Tensor, unit: int) -> Tensor:
        """Rows of the kept units of x [N, ...]."""
        assert self.chosen is not None
        return x[self.remember(self.chosen, lambda chosen: _rows(chosen.kept, unit))]

    def shorten_bounds(self, cu_seqlens: Tensor, unit: int, empty_segments: bool) -> Tensor:
        """The bounds of attention among kept rows. A segment may become empty: flash attention takes that, others are
        called segment by segment and do not; their bounds are read on the host anyway."""
        assert self.chosen is not None
        chosen = self.chosen
        kept = torch.zeros(len(chosen.of) + 1, dtype=torch.long, device=chosen.of.device)
        kept[1:].scatter_(0, chosen.kept, 1)
        bounds = (kept.cumsum(0)[cu_seqlens.long() // unit] * unit).to(cu_seqlens.dtype)
        return bounds if empty_segments else torch.unique_consecutive(bounds)

    def expand_units(self, x: Tensor) -> Tensor:
        """x [M, D], one row a kept unit -> [U, D]."""
        assert self.chosen is not None
        if self._expand is None:
            self._expand = self.chosen.slots()
        return x[self._expand]

    def expand_rows(self, x: Tensor, unit: int) -> Tensor:
        """x [M * unit, D] -> [U * unit, D]."""
        return self.expand_units(x.reshape(-1, unit, *x.shape[1:])).reshape(-1, *x.shape[1:])

    # one image a row: [B, prefix + N, D] -----------------------------------------------------------------------------

    def shorten_batch(self, x: Tensor) -> Tensor:
        """x [B, prefix + N, D] -> [B, prefix + M, D], M that of the row that keeps the most."""
        assert self.chosen is not None
        number, most, device = len(self.sizes), max(self.chosen.counts), x.device
        size, prefix = self.sizes[0], x.shape[1] - self.sizes[0]
        counts = torch.tensor(self.chosen.counts)
        valid = torch.arange(most) < counts[:, None]
        starts = torch.cumsum(counts, 0) - counts
        column = (starts[:, None] + torch.arange(most)).clamp_max(int(counts.sum()) - 1)
        row_start = upload(torch.arange(number) * size, device)
        column, starts = upload(column, device), upload(starts, device)
        index = torch.where(upload(valid, device), self.chosen.kept[column] - row_start[:, None], 0)
        slots = self.chosen.slots().view(number, size) - starts[:, None]
        first = torch.arange(prefix, device=device).expand(number, -1)
        index, self._expand = torch.cat([first, index + prefix], 1), torch.cat([first, slots + prefix], 1)
        self.short = index.shape[1]
        if len(set(self.chosen.counts)) > 1:
            self.mask = upload(torch.cat([torch.ones(number, prefix, dtype=torch.bool), valid], 1), device)
        return _gather(x, index)

    def expand_batch(self, x: Tensor) -> Tensor:
        assert self._expand is not None
        return _gather(x, self._expand) if x.shape[1] == self.short else x


class TowerHooks:
    """One tower with its stage. `last`: the choices of the last forward with images, one for each run of the tower;
    None where nothing was dropped. `generate` may encode the images before its first forward."""

    def __init__(self, stage: TowerDART, parts: TowerParts, is_active: Callable[[], bool]) -> None:
        if stage.layer >= len(parts.blocks):
            raise ValueError(
                f"TowerDART: layer={stage.layer}: expected 0 to {len(parts.blocks) - 1}, the blocks of the tower"
            )
        self.stage, self.parts, self.is_active = stage, parts, is_active
        self.call: TowerCall | None = None
        self.last: list[Representatives | None] = []
        self._ended = False  # the forward that `last` belongs to
        self._prefetched: list[tuple[list[int], Representatives | None]] = []  # sizes and choices of the next forward

    # before a forward ------------------------------------------------------------------------------------------------

    def prefetch(self, batch: Mapping[str, Any]) -> None:
        """Read the next forward's images while they are on the host, so that the tower needs no transfer."""
        self._prefetched = []
        for pixels, grid in PIXELS_AND_GRIDS:
            value = batch.get(pixels)
            if not isinstance(value, Tensor) or value.device.type != "cpu":
                continue
            if self.parts.packed and not isinstance(batch.get(grid), Tensor):
                continue
            value = value.flatten(0, 1) if value.ndim == 5 else value  # LLaVA-NeXT: [images, tiles, ...], padded
            self._prefetched.append(self._prepare(value, batch.get(grid)))

    def _prepare(self, pixels: Tensor, grid: Tensor | None) -> tuple[list[int], Representatives | None]:
        """Sizes, and with `tolerance` the choice; pixels are those that the tower gets."""
        units = self.parts.pixels_of_units(pixels)
        if grid is None:
            sizes, follows = [len(units) // len(pixels)] * len(pixels), None
        else:
            sizes, follows = _sizes(grid, self.parts.unit)
        if not self.stage.by_pixels:
            return sizes, None
        assert self.stage.tolerance is not None
        return sizes, match_pixels(units.cpu(), sizes, self.stage.tolerance, follows)

    # in a forward ----------------------------------------------------------------------------------------------------

    def register(self, inner: nn.Module, patcher: ObjectPatcher) -> list[Any]:
        parts, eager = self.parts, torch.compiler.disable
        handles = [
            inner.register_forward_pre_hook(eager(self.on_model_start), with_kwargs=True),
            inner.register_forward_hook(eager(self.on_model_end), always_call=True),
            parts.tower.register_forward_pre_hook(eager(self.on_tower_start), with_kwargs=True),
            parts.tower.register_forward_hook(eager(self.on_tower_end), always_call=True),
        ]
        for number in range(self.stage.layer, len(parts.blocks)):
            hook = eager(functools.partial(self.on_block, number))
            block: Any = parts.blocks[number]
            handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            if not parts.packed:
                attention = getattr(block, parts.attention)
                handles.append(attention.register_forward_pre_hook(eager(self.on_attention), with_kwargs=True))
        handles += [merger.register_forward_hook(eager(self.on_merger_end)) for merger in parts.mergers]
        if hasattr(parts.tower, PERMUTE):
            patcher.set(parts.tower, PERMUTE, self._recording_the_order(getattr(parts.tower, PERMUTE)))
        return handles

    def on_model_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if any(kwargs.get(pixels) is not None for pixels, _ in PIXELS_AND_GRIDS):
            self.last, self._ended = [], False

    def on_model_end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._prefetched, self._ended = [], True

    def on_tower_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.call = None
        if self._ended:
            self.last, self._ended = [], False
        if not self.is_active() or self.stage.keep == 1.0:
            return
        pixels: Any = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
        grid = args[1] if len(args) > 1 else kwargs.get("grid_thw")
        prepared = self._prefetched.pop(0) if self._prefetched else None
        if prepared is None or sum(prepared[0]) != len(self.parts.pixels_of_units(pixels)):
            prepared = self._prepare(pixels, grid)
        self.call = TowerCall(*prepared)

    def on_block(self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call, unit = self.call, self.parts.unit
        if call is None:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if number == self.stage.layer:
            hidden = self._choose(call, hidden)
            if call.chosen is None:
                return None
        if self.parts.packed:
            flash = uses_flash_attention(self.parts.tower)
            kwargs = {
                **kwargs,
                "cu_seqlens": call.remember(kwargs["cu_seqlens"], lambda x: call.shorten_bounds(x, unit, flash)),
                "position_embeddings": call.remember(
                    kwargs["position_embeddings"], lambda both: tuple(call.shorten_rows(x, unit) for x in both)
                ),
            }
        if not args:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    def _choose(self, call: TowerCall, hidden: Tensor) -> Tensor:
        """hidden at block `layer` -> that of the kept units."""
        packed, unit = self.parts.packed, self.parts.unit
        if call.by_pixels is not None:
            if call.by_pixels.drops_nothing:
                self.last.append(None)
                self.call = None
                return hidden
            chosen = call.by_pixels.to(hidden.device)
            self.last.append(chosen)
            if call.order is not None:
                chosen = chosen.reordered(upload(call.order, hidden.device))
        else:
            assert self.stage.keep is not None
            states = hidden.reshape(len(hidden) // unit, -1) if packed else _patches(hidden, call.sizes[0])
            chosen = choose_by_states(states, call.sizes, self.stage.keep, self.stage.pivots)
            back = None if call.order is None else torch.argsort(upload(call.order, hidden.device))
            self.last.append(chosen if back is None else chosen.reordered(back))
        call.chosen = chosen
        return call.shorten_rows(hidden, unit) if packed else call.shorten_batch(hidden)

    def on_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = self.call
        if call is None or call.mask is None:
            return None
        mask = call.remember(call.mask, lambda valid: attention_mask_of(valid, module))
        return args[:1], {**kwargs, "attention_mask": mask}

    def on_merger_end(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.call is None or self.call.chosen is None:
            return None
        return self.call.expand_units(output)

    def on_tower_end(self, module: nn.Module, args: Any, output: Any) -> Any:
        call, self.call = self.call, None
        if call is None or call.chosen is None or output is None:
            return None
        total = sum(call.sizes) * self.parts.unit

        def expand(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if not self.parts.packed:
                return call.expand_batch(x) if x.ndim == 3 else x
            return x if len(x) == total else call.expand_rows(x, self.parts.unit)

        output.last_hidden_state = expand(output.last_hidden_state)
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(expand(x) for x in output.hidden_states)
        return output

    def _recording_the_order(self, permute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(permute)
        def permute_and_record(x: Tensor, window_index: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.call is not None:
                self.call.order = window_index
            return permute(x, window_index, *args, **kwargs)

        return permute_and_record


def _sizes(grid: Tensor, unit: int) -> tuple[list[int], list[bool]]:
    """grid [images, 3] (frames, height, width) -> units of each frame, and whether it follows another of its video."""
    sizes, follows = [], []
    for frames, height, width in grid.tolist():
        sizes += [height * width // unit] * frames
        follows += [frame > 0 for frame in range(frames)]
    return sizes, follows


def _rows(units: Tensor, unit: int) -> Tensor:
    return (units[:, None] * unit + torch.arange(unit, device=units.device)).flatten()


def _patches(hidden: Tensor, size: int) -> Tensor:
    """[B, prefix + N, D] -> [B * N, D], without class tokens."""
    return hidden[:, hidden.shape[1] - size :].flatten(0, 1)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [B, L, D], index [B, S] -> [B, S, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
