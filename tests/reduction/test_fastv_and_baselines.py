"""The other methods against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dart_train.reduction import Balance, FastV, Random, Reducer, ReverseFastV, SelectionContext
from tests.reduction.scenes import Scene, prompt, visual

ROWS = ("tt" + "v" * 20 + "ttt", "t" + "v" * 11 + "tttt" + "aa", "v" * 5 + "t")
KEEP = 6


def best(score: dict[int, float], number: int) -> set[int]:
    return set(sorted(score, key=lambda place: (-score[place], place))[:number])


def attention(scene: Scene, context: SelectionContext, row: int) -> dict[int, float]:
    paid = context.score("attention")[row].tolist()
    return {place: paid[scene.start(row) + place] for place in visual(scene.rows[row])}


def test_fastv_keeps_the_tokens_of_highest_attention() -> None:
    scene = Scene(ROWS)
    context = scene.context(FastV(keep=KEEP))
    wanted = [best(attention(scene, context, row), KEEP) for row in range(len(ROWS))]
    assert scene.choice(FastV(keep=KEEP)) == wanted


def test_reverse_fastv_keeps_the_tokens_of_lowest_attention() -> None:
    scene = Scene(ROWS)
    context = scene.context(ReverseFastV(keep=KEEP))
    upside_down = [{place: -x for place, x in attention(scene, context, row).items()} for row in range(len(ROWS))]
    assert scene.choice(ReverseFastV(keep=KEEP)) == [best(score, KEEP) for score in upside_down]


def test_fastv_and_its_reverse_share_nothing_at_half_the_budget() -> None:
    scene = Scene(("v" * 20 + "t",))
    most, least = scene.choice(FastV(keep=0.5))[0], scene.choice(ReverseFastV(keep=0.5))[0]
    assert not most & least and len(most | least) == 20


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_balance_weighs_importance_against_similarity(alpha: float) -> None:
    scene, reducer = Scene(ROWS), Balance(keep=KEEP, alpha=alpha)
    context = scene.context(reducer)
    wanted = []
    for row, text in enumerate(ROWS):
        states = scene.alone(row).states[0] * scene.scale
        last = states[prompt(text)[-1]]
        alike = {i: float(torch.cosine_similarity(states[i], last, dim=0)) for i in visual(text)}
        important, alike = stretched(attention(scene, context, row)), stretched(alike)
        wanted.append(best({i: alpha * important[i] + (1 - alpha) * (1 - alike[i]) for i in alike}, KEEP))
    assert scene.choice(reducer) == wanted


def stretched(score: dict[int, float]) -> dict[int, float]:
    low, high = min(score.values()), max(score.values())
    return {place: (x - low) / (high - low) for place, x in score.items()}


def test_balance_at_one_is_fastv() -> None:
    assert Scene(ROWS).choice(Balance(keep=KEEP, alpha=1)) == Scene(ROWS).choice(FastV(keep=KEEP))


def draws(reducer: Reducer, seeds: range, size: int = 40) -> torch.Tensor:
    """[seeds, size]: how often each token is kept, over newly drawn prompts."""
    rows = Scene(("t" + "v" * size + "tttt",) * len(seeds), tuple(seeds))
    return reducer.select(rows.context(reducer)).float()


@pytest.mark.parametrize("what", ["prompts", "seeds"])
def test_random_is_uniform(what: str) -> None:
    """Chi-square over places, and over neighbours kept together, bounds that one in a million would break."""
    if what == "prompts":
        kept = draws(Random(keep=10), range(1000))
    else:
        context = Scene(("t" + "v" * 40 + "tttt",)).context(Random(keep=10))
        kept = torch.cat([Random(keep=10, seed=seed).select(context) for seed in range(1000)]).float()
    expected = 1000 * 10 / 40
    places = ((kept.sum(0) - expected) ** 2 / (expected * 0.75)).sum()
    assert 10 < places < 100  # 39 degrees of freedom
    together = (kept[:, 1:] * kept[:, :-1]).sum(1).mean()
    assert abs(together - 39 * (10 / 40) * (9 / 39)) < 0.25
    following = (kept[1:] * kept[:-1]).sum(1).mean()  # one draw is independent of the next
    assert abs(following - 10 * 10 / 40) < 0.25


def test_random_depends_on_seed_prompt_stage_and_group() -> None:
    scene = Scene(("t" + "v" * 40 + "tttt",))
    context = scene.context(Random(keep=10))
    first = Random(keep=10).select(context)
    assert not torch.equal(first, Random(keep=10, seed=1).select(context))
    assert not torch.equal(first, Random(keep=10).select(replace(context, seed=1)))  # the trainer's step
    assert not torch.equal(first, draws(Random(keep=10), range(1, 2)).bool())
    twins = Scene(("v" * 40 + "t" + "v" * 40 + "t",)).context(Random(keep=10, per="image"))
    assert not torch.equal(*Random(keep=10).select(twins))


def test_random_does_not_depend_on_the_answer() -> None:
    rows = ("t" + "v" * 30 + "ttt" + "a" * 5, "t" + "v" * 30 + "ttt" + "a", "t" + "v" * 30 + "ttt")
    first, second, prompt_alone = Scene(rows, (0, 0, 0)).choice(Random(keep=10))
    assert first == second == prompt_alone
