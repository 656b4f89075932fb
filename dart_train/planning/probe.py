"""What is timed: one real decoder layer, the vision tower, the head, AdamW and the selection of tokens, forward and
backward, with random weights, on the device of the run. A 7B plan needs the memory of one layer, not of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ..models.structure import find_parts, part_of
from ..profiling.flops import LayerCall, QuadraticCost, SavedActivations, capture_layer_call, hidden_states
from ..profiling.op_count import tensors_in
from ..profiling.selection_scene import TEXT, SelectionScene, find_groups
from ..profiling.timing import Workload, interleaved, time_once
from ..reduction import Reducer
from ..reduction.kept_tokens import KeptTokens
from .costs import Rates
from .setup import TrainingSetup, fit_to_device, scale_by_flops
from .workload import MicroBatches, StepWorkload

_REPEATS = 5
_HEAD_SHARES = (0.25, 1.0)  # of the targets: two sizes of the head
_LENGTH_PERCENTILES = (5, 95)  # of the lengths that layers run at: the range in which layers are timed


class Probe:
    """A model with one decoder layer, prepared as the recipe trains it."""

    def __init__(self, config: Any, setup: TrainingSetup, device: torch.device) -> None:
        self.setup, self.device = setup, device
        self.model = setup.build_one_layer(config, device)
        self.parts = find_parts(self.model)

    def layer(self, rows: int, length: int, padded: bool, recompute: bool = False) -> Workload:
        """Forward and backward. recompute: with gradient checkpointing."""
        layer, hidden, args, kwargs = self.layer_call(rows, length, padded)
        gradient = torch.randn_like(hidden)

        def run() -> None:
            with self._autocast():
                if recompute:
                    output = hidden_states(checkpoint(layer, hidden, *args, use_reentrant=False, **kwargs))
                else:
                    output = hidden_states(layer(hidden, *args, **kwargs))
            output.backward(gradient)
            self._clear_gradients(hidden)

        return run

    def teacher_layer(self, rows: int, length: int, padded: bool) -> Workload:
        layer, hidden, args, kwargs = self.layer_call(rows, length, padded)

        def run() -> None:
            with torch.no_grad(), self._autocast():
                layer(hidden, *args, **kwargs)

        return run

    def tower(self, batch: Mapping[str, Tensor], gradients: bool = True) -> Workload:
        """From the pixels of images and videos to their features; backward as far as something trains."""
        inner, calls = self.parts.inner, list[tuple[Any, dict[str, Tensor]]]()
        for pixels, method in (("pixel_values", "get_image_features"), ("pixel_values_videos", "get_video_features")):
            if pixels in batch:
                encode = getattr(inner, method)
                accepted = inspect.signature(encode).parameters
                calls.append((encode, {name: value for name, value in batch.items() if name in accepted}))

        def run() -> None:
            for encode, inputs in calls:
                with torch.set_grad_enabled(gradients), self._autocast():
                    features = encode(**inputs, return_dict=True)
                _backward([features.pooler_output, getattr(features, "deepstack_features", None)])
            self._clear_gradients()

        return run

    def tower_saved_bytes(self, batch: Mapping[str, Tensor]) -> int:
        """What autograd keeps of the tower and the projector."""
        saved = SavedActivations([*self.model.parameters(), *batch.values()])
        with saved.recording():
            self.tower(batch)()
        return saved.size

    def trains(self, part: str) -> bool:
        part_name = part_of(self.model)
        return any(w.requires_grad and part_name(name) == part for name, w in self.model.named_parameters())

    def body(self, batch: Mapping[str, Tensor]) -> Workload:
        """All but the head: embedding, tower, the one layer, the final norm, and the Python between them."""

        def run() -> None:
            with self._autocast():
                output = self.parts.inner(**batch, use_cache=False).last_hidden_state
            _backward(output)
            self._clear_gradients()

        return run

    def head(self, targets: int) -> Workload:
        """The head with the loss."""
        head, width = self.parts.top.get_output_embeddings(), self.parts.text_config.hidden_size
        states = torch.randn(targets, width, dtype=self.setup.dtype, device=self.device, requires_grad=True)
        labels = torch.zeros(targets, dtype=torch.long, device=self.device)

        def run() -> None:
            with self._autocast():
                loss = cross_entropy(head(states).float(), labels)
            loss.backward()
            self._clear_gradients(states)

        return run

    def optimizer(self) -> tuple[Workload, int]:
        """A step of AdamW, and the number of weights that it updates: those of this small model that train."""
        weights = [nn.Parameter(w.detach().float().clone()) for w in self.model.parameters() if w.requires_grad]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        adamw, limit = torch.optim.AdamW(weights, lr=1e-9, fused=True), self.setup.recipe.train.max_grad_norm

        def run() -> None:
            if limit:
                nn.utils.clip_grad_norm_(weights, limit)
            adamw.step()

        return run, sum(weight.numel() for weight in weights)

    def selection(self, reducer: Reducer, rows: int, tokens: int) -> Workload:
        """Finding the visual tokens, selecting, and gathering the states."""
        config, width = self.parts.text_config, self.parts.text_config.hidden_size
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        sizes = {"heads": heads, "kv_heads": config.num_key_value_heads, "head": head}
        scene = SelectionScene.draw(tokens, rows, width, self.device, self.setup.dtype, **sizes)
        count = reducer.kept_tokens([tokens]) + TEXT

        def run() -> None:
            find_groups(scene.ids).to(self.device)
            context = scene.context(reducer)
            keep = reducer.select(context)
            reducer.merge_targets(context, keep)
            KeptTokens.of(scene.keep_mask(keep), [count] * rows).gather(scene.states)

        return torch.no_grad()(run)

    def layer_call(self, rows: int, length: int, padded: bool) -> LayerCall:
        with self._autocast():
            return capture_layer_call(self.parts.text, rows, length, padded, self.setup.dtype, self.device)

    def _autocast(self) -> Any:
        return self.setup.autocast(self.device.type)

    def _clear_gradients(self, *inputs: Tensor) -> None:
        """Clears gradients, so that the next backward writes them, as the first of a step does, and does not add."""
        for tensor in (*inputs, *self.model.parameters()):
            tensor.grad = None


def _backward(outputs: Any) -> None:
    trained = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    if trained:
        torch.autograd.backward(trained, [torch.ones_like(tensor) for tensor in trained])


@dataclass(frozen=True)
class TimedBatch:
    """The micro-batch that is timed: of median length, or some of its rows."""

    batch: Mapping[str, Tensor]
    rows: int
    visual: np.ndarray  # tokens of each row
    targets: int

    @property
    def length(self) -> int:
        return int(self.batch["input_ids"].shape[1])

    @property
    def padded(self) -> bool:
        return not bool(self.batch["attention_mask"].all())


def measure_rates(
    config: Any,
    setup: TrainingSetup,
    batches: MicroBatches,
    works: Sequence[StepWorkload],
    device: torch.device,
    seconds: float,
    trained: int,
) -> Rates:
    """works: full tokens first, then every budget; seconds: for each timed call in all its repeats; trained: how many
    weights of the complete model train."""
    small, factor = fit_to_device(config, setup, device)
    probe, at = Probe(small, setup, device), _median_batch(works[0])
    timed = _timed_batch(batches, at, _affordable_rows(probe, works[0], at, seconds), setup, device)
    optimizer, weights = probe.optimizer()
    calls = {"optimizer": optimizer, **_calls(probe, timed, _lengths(works), full_width=factor == 1)}
    timings = interleaved(calls, device, _REPEATS, seconds)
    found = {name: timing.median for name, timing in timings.items()}
    layer, forward = (_fit(name, timed.rows, found) for name in ("layer", "forward"))
    if factor > 1:
        layer, forward = (scale_by_flops(fit, config, small, setup) for fit in (layer, forward))
    visual = max(1, int(timed.visual.sum()))
    other = found["body"] - found.get("tower", 0.0) - found["one layer"] if factor == 1 else 0.0
    return Rates(
        layer=layer,
        forward=forward,
        head=_fit("head", 1, found, pairs=False).scaled(factor),
        tower=(found.get("tower", 0.0) + found.get("tower again", 0.0)) / visual,
        choice=sum(time for name, time in found.items() if name.startswith("choice")) / timed.rows,
        other=max(0.0, other) * float(works[0].rows.mean()) / timed.rows,
        optimizer=found["optimizer"] / weights * trained,
        tower_saved=probe.tower_saved_bytes(timed.batch) / visual if "tower" in calls else 0.0,
        timings=timings,
        notes=_notes(timed.rows, int(works[0].rows[at]), factor),
    )


def _calls(probe: Probe, timed: TimedBatch, lengths: Sequence[int], full_width: bool) -> dict[str, Workload]:
    recipe = probe.setup.recipe
    recompute, teacher = recipe.train.gradient_checkpointing, recipe.runs_teacher or probe.setup.has_reference
    calls: dict[str, Workload] = {}
    if full_width:
        calls["body"] = probe.body(timed.batch)
        calls["one layer"] = probe.layer(timed.rows, timed.length, timed.padded)
    if timed.visual.any():
        calls["tower"] = probe.tower(timed.batch)
        if recompute and probe.trains("vision"):
            calls["tower again"] = probe.tower(timed.batch, gradients=False)
    for length in lengths:
        if recipe.trains_at_full_tokens:
            calls[f"layer {length}"] = probe.teacher_layer(timed.rows, length, timed.padded)
        else:
            calls[f"layer {length}"] = probe.layer(timed.rows, length, timed.padded, recompute)
        if teacher:
            calls[f"forward {length}"] = probe.teacher_layer(timed.rows, length, timed.padded)
    for number in sorted({max(1, round(timed.targets * share)) for share in _HEAD_SHARES}):
        calls[f"head {number}"] = probe.head(number)
    tokens = round(float(timed.visual[timed.visual > 0].mean())) if timed.visual.any() else 0
    for stage, reducer in enumerate(recipe.reduction.reducers() if tokens else ()):
        calls[f"choice {stage}"] = probe.selection(reducer, timed.rows, tokens)
        tokens = reducer.kept_tokens([tokens])
    return calls


def _lengths(works: Sequence[StepWorkload]) -> list[int]:
    """Three, over the range that the run's layers will run at."""
    lengths = np.concatenate([lengths for work in works for _, lengths in work.stages])
    low, high = np.percentile(lengths[lengths > 0], _LENGTH_PERCENTILES)
    low = min(low, high / 2)
    return sorted({max(2, round(length)) for length in (low, (low + high) / 2, high)})


def _fit(name: str, rows: int, found: Mapping[str, float], pairs: bool = True) -> QuadraticCost:
    points = [(rows, int(key.split()[1]), time) for key, time in found.items() if key.startswith(f"{name} ")]
    return QuadraticCost.fit(points, pairs) if points else QuadraticCost()


def _median_batch(work: StepWorkload) -> int:
    """The micro-batch of median length, among those with an image if there are any."""
    lengths = work.rows * work.stages[0][1]
    among = np.flatnonzero(work.visual if work.visual.any() else lengths)
    return int(among[np.argsort(lengths[among])[len(among) // 2]])


def _affordable_rows(probe: Probe, work: StepWorkload, at: int, seconds: float) -> int:
    """As many rows of a micro-batch as leave time for all repeats; several together are no slower than one by one."""
    one_row = probe.layer(1, int(work.stages[0][1][at]), False)
    time_once(one_row, probe.device)
    rows = int(seconds / (_REPEATS + 1) / time_once(one_row, probe.device))
    return max(1, min(rows, int(work.rows[at])))


def _timed_batch(batches: MicroBatches, at: int, size: int, setup: TrainingSetup, device: torch.device) -> TimedBatch:
    rows = batches.data
    numbers = [number for number in batches.batches[at] if not rows.rows[number].dropped]
    numbers = sorted(numbers, key=lambda n: -batches.visual[n])[:size]
    return TimedBatch(
        rows.encode(numbers, setup.recipe, setup.dtype, device),
        len(numbers),
        batches.visual[numbers],
        max(1, int(batches.targets[batches.batches].sum(1).mean())),
    )


def _notes(rows: int, wanted: int, factor: int) -> tuple[str, ...]:
    notes = []
    if rows < wanted:
        notes.append(f"{rows} of {wanted} rows of a micro-batch were timed together, and scaled up")
    if factor > 1:
        notes.append(f"the decoder layer did not fit; one of 1/{factor} of its width was timed, and scaled by FLOPs")
    return tuple(notes)
