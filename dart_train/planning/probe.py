"""The calls that are timed: one real decoder layer, the whole vision tower, the head, AdamW, and the choice of tokens,
forward and backward, with random weights on the device of the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ..models.structure import find_parts, part_of
from ..profiling.flops import SavedActivations, capture_layer_call, hidden_states, one_layer_config
from ..profiling.op_count import tensors_in
from ..profiling.selection_scene import TEXT, SelectionScene, find_groups
from ..profiling.timing import Workload
from ..reduction import Reducer
from ..reduction.kept_tokens import KeptTokens
from .setup import Setup


class Probe:
    """A model with one decoder layer, set up as the recipe trains it."""

    def __init__(self, config: Any, setup: Setup, device: torch.device) -> None:
        self.setup, self.device = setup, device
        self.model = setup.build(one_layer_config(config), device)
        self.anatomy = find_parts(self.model)

    def layer(self, rows: int, length: int, padded: bool, again: bool = False) -> Workload:
        """Forward and backward; again: with checkpointing, which computes the forward twice."""
        layer, hidden, args, kwargs = self._layer_call(rows, length, padded)
        gradient = torch.randn_like(hidden)

        def run() -> None:
            with self._computing():
                if again:
                    output = hidden_states(checkpoint(layer, hidden, *args, use_reentrant=False, **kwargs))
                else:
                    output = hidden_states(layer(hidden, *args, **kwargs))
            output.backward(gradient)
            self._forget(hidden)

        return run

    def forward(self, rows: int, length: int, padded: bool) -> Workload:
        """What a teacher does."""
        layer, hidden, args, kwargs = self._layer_call(rows, length, padded)

        def run() -> None:
            with torch.no_grad(), self._computing():
                layer(hidden, *args, **kwargs)

        return run

    def tower(self, batch: Mapping[str, Tensor], gradients: bool = True) -> Workload:
        """From pixels to what takes the placeholders' places; the backward as far as something trains."""
        inner = self.anatomy.inner
        accepted = inspect.signature(inner.get_image_features).parameters
        inputs = {name: value for name, value in batch.items() if name in accepted}

        def run() -> None:
            with torch.set_grad_enabled(gradients), self._computing():
                features = inner.get_image_features(**inputs, return_dict=True)
            _backward([features.pooler_output, getattr(features, "deepstack_features", None)])
            self._forget()

        return run

    def tower_saved(self, batch: Mapping[str, Tensor]) -> int:
        """Bytes that autograd keeps of the tower and the projector."""
        kept = SavedActivations([*self.model.parameters(), *batch.values()])
        with kept.recording():
            self.tower(batch)()
        return kept.size

    def trains(self, part: str) -> bool:
        belongs = part_of(self.model)
        return any(w.requires_grad and belongs(name) == part for name, w in self.model.named_parameters())

    def body(self, batch: Mapping[str, Tensor]) -> Workload:
        """All but the head: embedding, tower, the one layer, the final norm, and what Python does between them."""

        def run() -> None:
            with self._computing():
                output = self.anatomy.inner(**batch, use_cache=False).last_hidden_state
            _backward(output)
            self._forget()

        return run

    def head(self, targets: int) -> Workload:
        head, width = self.anatomy.top.get_output_embeddings(), self.anatomy.text_config.hidden_size
        states = torch.randn(targets, width, dtype=self.setup.dtype, device=self.device, requires_grad=True)
        labels = torch.zeros(targets, dtype=torch.long, device=self.device)

        def run() -> None:
            with self._computing():
                loss = cross_entropy(head(states).float(), labels)
            loss.backward()
            self._forget(states)

        return run

    def optimizer(self) -> tuple[Workload, int]:
        """A step of AdamW, and the number of weights that it moves: those of this small model that train."""
        weights = [nn.Parameter(w.detach().float().clone()) for w in self.model.parameters() if w.requires_grad]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        adamw = torch.optim.AdamW(weights, lr=1e-9, fused=True)

        def run() -> None:
            if self.setup.recipe.train.max_grad_norm:
                nn.utils.clip_grad_norm_(weights, self.setup.recipe.train.max_grad_norm)
            adamw.step()

        return run, sum(weight.numel() for weight in weights)

    def choice(self, reducer: Reducer, rows: int, tokens: int) -> Workload:
        """Finding the visual tokens, choosing, and gathering the states."""
        scene, count = self._scene(rows, tokens), reducer.kept_tokens([tokens]) + TEXT

        def run() -> None:
            find_groups(scene.ids).to(self.device)
            view = scene.context(reducer)
            keep = reducer.select(view)
            reducer.merge_targets(view, keep)
            KeptTokens.of(scene.keep_mask(keep), [count] * rows).gather(scene.states)

        return torch.no_grad()(run)

    def _scene(self, rows: int, tokens: int) -> SelectionScene:
        """With the heads of this model."""
        config, width = self.anatomy.text_config, self.anatomy.text_config.hidden_size
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        sizes = {"heads": heads, "kv_heads": config.num_key_value_heads, "head": head}
        return SelectionScene.draw(tokens, rows, width, self.device, self.setup.dtype, **sizes)

    def _layer_call(self, rows: int, length: int, padded: bool) -> Any:
        with self._computing():
            return capture_layer_call(self.anatomy.text, rows, length, padded, self.setup.dtype, self.device)

    def _computing(self) -> Any:
        return self.setup.computing(self.device.type)

    def _forget(self, *inputs: Tensor) -> None:
        """So that the next backward sets gradients, as the first of a step does, and does not add."""
        for tensor in (*inputs, *self.model.parameters()):
            tensor.grad = None


def _backward(outputs: Any) -> None:
    trained = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    if trained:
        torch.autograd.backward(trained, [torch.ones_like(tensor) for tensor in trained])
