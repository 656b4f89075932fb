"""A relaxed top-k, through which the language model's loss reaches the scores of a selection.

The selection itself has no gradient. Around it, each kept token is replaced by a mixture of itself and the candidates
that were dropped, weighted by a softmax of their scores at a temperature: what would be in its place if it had to
compete with them. The lower the temperature, the closer the mixture is to the kept token, and the relaxed choice to the
selection. (Slots filled by mixtures of patches, as in Cordonnier et al., Differentiable Patch Selection, 2021.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .context import ScoredChoice

_NEVER = -1e30  # finite: a group with nothing dropped has a gradient of zero, not of NaN


def relaxed_states(states: Tensor, choice: ScoredChoice, temperature: float) -> Tensor:
    """states [R, N, D] -> [R, N, D]: mixtures at the places that `choice` kept; elsewhere they have no meaning.

    Differentiable in the scores, not in the states. For a kept token j and the dropped candidates i,
    sum_i softmax_i(s / T) x_i over {j} and all i, which is gate_j x_j + (1 - gate_j) mean: one mean of the dropped for
    all j, and a sigmoid of the score's distance from a soft maximum of theirs.
    """
    logits = choice.scores.float() / temperature
    dropped = choice.candidates & ~choice.kept
    among_dropped = logits.masked_fill(~dropped, _NEVER)
    gate = torch.sigmoid(logits - among_dropped.logsumexp(1, keepdim=True))  # [R, N]
    states = states.detach()
    mean = among_dropped.softmax(1).to(states.dtype)[:, None] @ states  # [R, 1, D]
    gate = gate.to(states.dtype)[..., None]
    return gate * states + (1 - gate) * mean


def straight_through(states: Tensor, choice: ScoredChoice, temperature: float, weight: float = 1.0) -> Tensor:
    """states [R, N, D] -> the same numbers, with `weight` times the gradient of `relaxed_states` in the scores in
    addition to their own."""
    relaxed = relaxed_states(states, choice, temperature)
    nothing = weight * (relaxed - relaxed.detach())  # exactly 0
    return states + nothing.masked_fill(~choice.kept[..., None], 0.0)
