"""TRL's DPOTrainer and GRPOTrainer with one choice of visual tokens for all forwards of a row, and with this package's
checkpoints. TRL's own loss, data collators and rollouts are used as they are.

Read in trl 1.16.0: `DPOTrainer._compute_loss` (the policy's forward, then the reference's); `GRPOTrainer`:
`_generate_single_turn` (one call of `generate` for all rows of this rank), `_generate_and_score_completions` (rows in
the order of the rollouts), `_get_per_token_logps_and_entropies` (rows in order, in chunks), `_compute_loss` (a part of
the rows, shuffled together with every entry of the batch); `create_model_card` (writes into the run's folder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import PrinterCallback
from trl import DPOTrainer, GRPOTrainer

from ...config import Recipe
from ...hooks import Attached, attach
from ...hooks.choices import RowChoices, SharedChoice
from ..nonfinite import NonFiniteStepError
from ..trainer_compat import CompatTrainer

_CHOICE = ("choice_kept", "choice_visual")  # of each row, in the batches of GRPO
SHARING, DIFFERING = "rows_sharing_choice", "rows_with_another_choice"


class PreferenceTrainer(CompatTrainer):
    """What both trainers share. `attached`: of the policy, None where nothing is reduced; `others`: of a reference that
    is a model of its own."""

    attached: Attached | None = None
    others: tuple[Attached, ...] = ()
    recipe: Recipe
    on_heartbeat: Callable[[], None] = staticmethod(lambda: None)  # set by the caller that watches the run
    counted_rows: int = 0
    counted_differing: int = 0
    share_choices: bool = True  # False: each forward chooses, and differences are only counted

    def setup(self, recipe: Recipe, checkpoint_writer: Any) -> None:
        """After the trainer is made: the reduction on the policy, and on a reference of its own."""
        self.recipe, self.checkpoint_writer = recipe, checkpoint_writer
        stages = recipe.reduction.all_stages() if recipe.reduction.stages else []
        if stages:
            self.attached = attach(self.model, stages, processor=self.processing_class)
            for scorer in self.attached.scorers.values():
                scorer.requires_grad_(False)
            reference = getattr(self, "ref_model", None)
            if reference is not None:
                unwrapped = self.accelerator.unwrap_model(reference)
                self.others = (attach(unwrapped, stages, processor=self.processing_class),)
        self.remove_callback(PrinterCallback)
        self._keep_recorded_choices_in_checkpointing()

    def _keep_recorded_choices_in_checkpointing(self) -> None:
        """With an adapter at ZeRO-3 TRL asks for reentrant checkpointing, in whose second forward the recorded keys are
        lost. The other kind trains there as at any stage, since DeepSpeed 0.19. transformers has renamed the
        argument."""
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            options = getattr(self.args, name, None)
            if options is not None:
                options["use_reentrant"] = False

    def heartbeat(self) -> None:
        self.on_heartbeat()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A batch of rollouts is one of its parts."""
        loss = super().training_step(*args, **kwargs)
        self.heartbeat()
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.heartbeat()
        return super().prediction_step(*args, **kwargs)

    def on_optimizer_step(self, taken: bool) -> None:
        if not taken and self.recipe.train.on_nan == "stop" and self.recipe.train.precision != "fp16":
            raise NonFiniteStepError(
                f"NaN or Inf gradient at step {self.state.global_step + 1}. The step was not taken and nothing has "
                "been saved since. Lower train.learning_rate, or skip such steps: train.on_nan: skip"
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in the run's folder: an export writes the card."""

    @contextmanager
    def sharing(self, choices: RowChoices | None = None) -> Iterator[SharedChoice]:
        """Forwards inside this context share one choice: `choices`, or that of the first. What they keep is counted."""
        shared = SharedChoice(choices, enforced=self.share_choices)
        attached = self.attached
        with nullcontext() if attached is None else attached.one_choice(shared, *self.others):
            yield shared
        self.counted_rows += shared.rows
        self.counted_differing += shared.differing

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.attached is not None and "loss" in logs:
            mine = torch.tensor([self.counted_rows, self.counted_differing], device=self.args.device)
            rows, differing = self.accelerator.reduce(mine, "sum").tolist()
            logs.update({SHARING: rows, DIFFERING: differing})
        super().log(logs, start_time)


class ReducedDPOTrainer(PreferenceTrainer, DPOTrainer):
    """Chosen and rejected answer, policy and reference: one choice, that of the policy."""

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        with self.sharing():
            return super()._compute_loss(model, inputs, return_outputs)


class ReducedGRPOTrainer(PreferenceTrainer, GRPOTrainer):
    """Old policy, reference and every update of a rollout: the choice of the rollout."""

    rollout_choices: RowChoices | None = None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        shared = SharedChoice()
        with nullcontext() if self.attached is None else self.attached.one_choice(shared):
            made = super()._generate_single_turn(*args, **kwargs)
        self.rollout_choices = shared.choices
        return made

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.rollout_choices, self._scoring = None, True
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self._scoring = False
        choices: RowChoices | None = getattr(self, "rollout_choices", None)  # set while the rollouts were made
        if choices is not None:
            width = choices.kept.shape
            batch[_CHOICE[0]] = choices.kept.flatten(1)
            batch[_CHOICE[1]] = torch.cat(
                [choices.visual[:, None], torch.full_like(choices.visual[:, None], width[1])], 1
            )
        return batch

    _scoring = False

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if not self._scoring:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.sharing(self.rollout_choices):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        kept, counts = (inputs.get(name) for name in _CHOICE)
        if kept is None or counts is None:
            return super()._compute_loss(model, inputs)
        choices = RowChoices(kept.unflatten(1, (int(counts[0, 1]), -1)), counts[:, 0])
        with self.sharing(choices):
            return super()._compute_loss(model, inputs)
