"""The optimizer's state by the names of parameters, complete and in float32: what checkpoints that partition it
differently have in common. Read from, and written as, the file that FSDP2's checkpoints have (`fsdp_state.pt`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.deepspeed_compat import complete_shape

STATE_FILE = "fsdp_state.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
Layout = Sequence[Mapping[str, torch.Size]]  # the optimizer's groups: its parameters by name, with complete shapes


@dataclass(frozen=True)
class CompleteState:
    """weights: of all parameters that train. state: of the optimizer, `step` among it; empty for a parameter that never
    had a gradient. groups: the settings of each group of `Layout`, without parameters."""

    weights: Mapping[str, Tensor]
    state: Mapping[str, Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]

    @property
    def step(self) -> Tensor:
        """The number of steps of Adam. Raises ValueError where parameters have different ones."""
        steps = {float(values["step"]) for values in self.state.values() if "step" in values}
        if len(steps) != 1:
            raise ValueError(f"expected the same step of the optimizer for all parameters, given {sorted(steps)[:4]}")
        return torch.tensor(steps.pop())


def optimizer_layout(model: Any, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, torch.Size]]:
    """groups: of the optimizer of the model. Names are those of the model, partitioned or not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(each)]: complete_shape(each) for each in group["params"]} for group in groups]


def from_indexed(weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], layout: Layout) -> CompleteState:
    """optimizer: its `state_dict`, in which parameters are numbered through all groups. Raises ValueError."""
    given, wanted = [len(group["params"]) for group in optimizer["param_groups"]], [len(group) for group in layout]
    if given != wanted:
        raise ValueError(f"its optimizer has groups of {given} parameters, expected {wanted}")
    names = [name for group in layout for name in group]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    if lost := sorted(set(names) - set(weights)):
        raise ValueError(f"weights that are trained are missing: {', '.join(lost[:5])}")
    return CompleteState(
        {name: weights[name] for name in names},
        {name: optimizer["state"].get(number, {}) for name, number in zip(names, numbers, strict=True)},
        [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]],
    )


def to_indexed(state: CompleteState, layout: Layout) -> dict[str, Any]:
    """As `from_indexed` takes it."""
    numbers = {name: number for number, name in enumerate(name for group in layout for name in group)}
    groups = [
        {**settings, "params": [numbers[name] for name in names]}
        for settings, names in zip(state.groups, layout, strict=True)
    ]
    return {"state": {numbers[name]: dict(v) for name, v in state.state.items() if v}, "param_groups": groups}


def read_state_file(checkpoint: Path, layout: Layout) -> CompleteState:
    saved = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
    return from_indexed(saved["weights"], saved["optimizer"], layout)


def write_state_file(state: CompleteState, folder: Path, layout: Layout) -> None:
    weights = {name: weight.float() for name, weight in state.weights.items()}
    torch.save({"weights": weights, "optimizer": to_indexed(state, layout)}, folder / STATE_FILE)
