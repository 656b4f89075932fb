"""What all ranks must agree on behind each step: that it was a bad one, and that the run is to stop here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from .trainer import DartTrainer


class StepEnds(TrainerCallback):
    def __init__(self, trainer: DartTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        guard, stopping = self.trainer.guard, self.trainer.stopping
        bad, stop = self._anywhere(guard.seen(), stopping.why is not None)
        guard.judge(state.global_step, bad)
        if stop:
            stopping.done = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # whoever asked does not wait for it

    def _anywhere(self, *here: bool) -> list[bool]:
        """What any rank says; one small message a step."""
        told = torch.tensor([int(each) for each in here], device=self.trainer.args.device)
        return [bool(each) for each in self.trainer.accelerator.reduce(told, "sum").tolist()]
