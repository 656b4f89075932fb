"""`check`: every law holds on every family, and deliberate faults are found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dart_train import DART, Learned, Pooling, Random, attach
from dart_train import conformance as laws
from dart_train.__main__ import main
from dart_train.checkpoints import write_reducers
from dart_train.checkpoints.scorer_file import write_scorers
from dart_train.conformance import (
    CheckReport,
    LawResult,
    check,
    default_reducers,
    largest,
    last_tokens,
    only_few_trained,
    relative_difference,
)
from dart_train.conformance.measures import ModelUnderTest, placeholder_ids
from dart_train.conformance.packed import packed_rows
from dart_train.hooks import (
    engine,
    forward_state,
    masks,
    observers,
    outputs,
    packing,
    reference,
    selection_inputs,
    tower,
)
from dart_train.models.structure import find_parts
from tests.laws.test_tower import NAMES as TOWERS
from tests.zoo import FAMILIES, HYBRIDS, save_folder

PADDING = ("llava_next", "llava_onevision")  # their processors pad images to tiles


def checked(name: str, *reducers: Any, **options: Any) -> CheckReport:
    family = FAMILIES[name]
    return check(family.model(**options), family.processor(), reducers or None, show=False)


def verdicts(report: CheckReport) -> dict[str, str]:
    return {result.law: result.verdict for result in report.results}


def has_window(name: str) -> bool:
    return getattr(find_parts(FAMILIES[name].model()).text_config, "sliding_window", None) is not None


# Without position ids Qwen-VL itself does not continue a cache with an image, and Gemma 3 does it differently.
LATER_TURNS = ("keep-all: an image in a second turn", "dart: an image in a second turn")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_holds(name: str) -> None:
    report = checked(name)
    not_checked = {law for law, verdict in verdicts(report).items() if verdict == "not checked"}
    unknown_tower = {"vision tower: TowerDART"} & not_checked
    padded = {"vision tower: nothing dropped changes nothing"} if name in PADDING else set()
    assert not_checked <= {*LATER_TURNS, *unknown_tower, *padded}, str(report)
    assert "does not hold" not in verdicts(report).values(), str(report)
    assert report.ok and len(report.results) == (20 if has_window(name) else 18) + (1 if unknown_tower else 3)
    assert not unknown_tower or name not in TOWERS
    assert all(0 <= f.number < report.tolerance / 5 for f in report.results if f.number is not None)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("guidance", ["prompt", "none"])
def test_laws_hold_for_the_learned_choice(name: str, guidance: Any) -> None:
    report = checked(name, Learned(keep=0.25, layer=1, guidance=guidance))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "gemma3"])
def test_every_law_holds_with_eager_attention(name: str) -> None:
    report = checked(name, DART(keep=6, layer=1), attn="eager")
    failed = {law for law, verdict in verdicts(report).items() if verdict != "holds"}
    padded = {"vision tower: nothing dropped changes nothing"} if name in PADDING else set()
    assert failed <= {*LATER_TURNS, *padded} and report.ok, str(report)


def test_model_is_unchanged_after_the_check() -> None:
    model = FAMILIES["llava"].model().train()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check(model, FAMILIES["llava"].processor(), show=False)
    assert model.training and not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# broken on purpose ----------------------------------------------------------------------------------------


def failing(report: CheckReport) -> set[str]:
    return {law.split(":")[-1].strip() for law, verdict in verdicts(report).items() if verdict != "holds"}


def test_renumbered_positions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_ones(self: Any, x: Tensor, stage: int) -> Tensor:
        return x[..., : self.stages[stage].kept.length, :]

    monkeypatch.setattr(forward_state.ForwardState, "gather_rotary", first_ones)
    report = checked("qwen2_vl", Random(keep=8))
    assert "reduced = dropped tokens masked" in failing(report) and not report.ok


def test_mask_that_forgets_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_visible(config: Any, hidden: Tensor, valid: Tensor, cache: Any, layer: int) -> Any:
        return real_build(config, hidden, torch.ones_like(valid), cache, layer)

    real_build = masks.build_causal_mask
    monkeypatch.setattr(masks, "build_causal_mask", all_visible)
    assert "generation with a cache = without" in failing(checked("llava", Random(keep=8)))


def test_loss_at_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(outputs.SupervisedTargets):
        def gather(self, hidden: Tensor) -> Tensor:
            return hidden[self.rows[0], self.slots[0] + 1][None]

    monkeypatch.setattr(outputs, "SupervisedTargets", Late)
    assert failing(checked("llava", Random(keep=8))) == {"gradients, full length = compact"}


def test_hook_that_was_not_removed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach.__globals__["Attached"], "remove", lambda self: self._patcher.undo())
    report = checked("llava", Random(keep=8))
    assert verdicts(report)["removal leaves the model as it was"] == "does not hold"
    assert "hooks are left" in str(report)


def test_entries_of_other_tokens_are_found_where_their_number_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with inputs of full length that a decoder gives to every layer: in a batch whose longest row is text alone
    the short sequence is as long as the full one."""

    def unless_it_fits(self: Any, x: Tensor, stage: int) -> Tensor:
        return x if self.stages[stage].kept.length == x.shape[-2] else right(self, x, stage)

    right = forward_state.ForwardState.gather_rotary
    monkeypatch.setattr(forward_state.ForwardState, "gather_rotary", unless_it_fits)
    report = checked("llava", Random(keep=8))
    assert failing(report) == {"right padding, a longer text row"}


def test_window_over_kept_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "reaches_window", lambda config, layer, length: False)
    assert "generation past a window" in failing(checked("gemma3", Random(keep=8)))


@pytest.mark.parametrize("name", HYBRIDS)
def test_rows_of_a_recurrent_model_are_refused_by_name(name: str) -> None:
    family = HYBRIDS[name]
    result = packed_rows(ModelUnderTest.of(family.model(), family.processor()), DART(keep=8))
    assert result.verdict == "not checked" and "train.padding_free is refused: the state of its rec" in result.note


def test_packed_row_that_sees_the_one_before_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.RowPacking, "_on_layer", lambda self, module, args, kwargs: (args, kwargs))
    assert failing(checked("llava", DART(keep=8))) == {"rows without padding = padded"}


def test_prefill_that_forgets_its_cache_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(observers.RecordingCache):
        def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            key, value = super().update(key, value, *args, **kwargs)
            return (key, value) if self._cache is None else (key, 2 * value)

    monkeypatch.setattr(selection_inputs, "RecordingCache", Doubling)
    assert "prefill with a cache = without" in failing(checked("llava", DART(keep=8)))


def test_tower_whose_features_come_back_in_the_wrong_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    expand = tower.TowerCall.expand_batch
    monkeypatch.setattr(tower.TowerCall, "expand_batch", lambda call, x: expand(call, x).flip(0))
    assert failing(checked("llava", DART(keep=8))) == {"a batch = its samples one by one"}


def test_padding_that_moves_pivots_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without position ids the model counts padding on the left, too, and DART compares rotated keys."""
    monkeypatch.setattr(engine, "position_ids_from_mask", lambda plan, inputs, parts: {})
    found = failing(checked("llava", DART(keep=8)))
    assert found == {"padding does not decide what is kept", "rows without padding = padded"}


def test_later_turn_without_its_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel then takes the first keys of the cache for those before the new tokens."""

    def none_for_later_turns(config: Any, hidden: Tensor, valid: Any, cache: Any, layer: int) -> Any:
        later = cache is not None and hidden.shape[1] > 1
        return None if later else right(config, hidden, valid, cache, layer)

    right = masks.build_causal_mask
    monkeypatch.setattr(masks, "build_causal_mask", none_for_later_turns)
    assert failing(checked("llava", DART(keep=8))) == {"an image in a second turn"}


def test_renumbered_positions_of_a_later_turn_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong where all tokens are kept: a reduced later turn must be tried."""

    def first_ones_later(self: Any, x: Tensor, stage: int) -> Tensor:
        return x[..., : self.stages[stage].kept.length, :] if self.plan.past else right(self, x, stage)

    right = forward_state.ForwardState.gather_rotary
    monkeypatch.setattr(forward_state.ForwardState, "gather_rotary", first_ones_later)
    report = checked("llava", DART(keep=8))
    failed = {law for law, verdict in verdicts(report).items() if verdict == "does not hold"}
    assert failed == {"dart: an image in a second turn"}


def test_placeholders_of_all_kinds_are_not_generated() -> None:
    model = FAMILIES["qwen2_vl"].model()
    model.config.audio_token_id = 7
    assert {7, model.config.image_token_id, model.config.video_token_id} <= set(placeholder_ids(model))


def test_law_that_raises_does_not_hold_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("deep inside")

    monkeypatch.setattr(laws, "generate_greedily", broken)
    report = checked("llava", Random(keep=8))
    assert verdicts(report)["random: generation"] == "does not hold" and not report.ok
    assert [f.note for f in report.results if f.law == "random: generation"] == ["KeyError: 'deep inside'"]
    assert verdicts(report)["random: gradients, full length = compact"] == "holds"


def test_nan_does_not_hold() -> None:
    nan = torch.tensor([1.0, math.nan])
    assert math.isnan(relative_difference(nan, nan)) and math.isnan(largest([0.0, math.nan, 1.0]))
    assert LawResult.of("law", math.nan, 1.0).verdict == "does not hold"


# what cannot be checked is reported ----------------------------------------------------------------------------


def test_kernels_without_masks_are_not_checked_against_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MASKED_KERNELS", ())
    report = checked("llava", Random(keep=8))
    assert verdicts(report)["random: reduced = dropped tokens masked"] == "not checked"
    assert report.ok and "takes no mask" in str(report)


def test_merged_and_unreduced_are_not_checked_against_a_mask() -> None:
    report = checked("llava", Pooling(keep=16), DART(keep=1000))
    law = "{}: reduced = dropped tokens masked"
    assert {verdicts(report)[law.format(name)] for name in ("pooling", "dart")} == {"not checked"}
    assert report.ok and "nothing was dropped" in str(report)


def test_nothing_checked_is_not_ok() -> None:
    assert not CheckReport("model", (LawResult("law", "not checked"),), 1e-3).ok


def test_table_is_printed_with_names_verdicts_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    check(FAMILIES["llava"].model(), FAMILIES["llava"].processor(), [Random(keep=8)])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("LlavaForConditionalGeneration, float32")
    assert len(out) == 15 and all(re.search(r"  holds +\d\.\de[-+]\d\d", line) for line in out[1:])


def test_unknown_models_are_refused_with_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"Linear: .* lacks .*get_decoder.*image_token_id"):
        check(nn.Linear(2, 2), FAMILIES["llava"].processor())


def test_processors_that_cannot_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a processor"):
        check(FAMILIES["llava"].model(), FAMILIES["llava"].processor().tokenizer)
    with pytest.raises(ValueError, match="attached to this model already"):
        model = FAMILIES["llava"].model()
        attach(model, Random(keep=8))
        check(model, FAMILIES["llava"].processor())


# its parts -------------------------------------------------------------------------------------------------


def test_shallow_models_are_cut_in_the_middle() -> None:
    model = FAMILIES["llava"].model()
    for depth, layer in ((5, 2), (3, 1), (2, 1), (1, 0)):
        del find_parts(model).layers[depth:]
        assert {reducer.layer for reducer in default_reducers(model)} == {layer}


def test_last_tokens_of_padded_rows() -> None:
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    expected = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(last_tokens(real, 2), expected)


def test_training_flags_come_back_after_an_error() -> None:
    model = FAMILIES["llava"].model()
    with pytest.raises(RuntimeError), only_few_trained(model, 2) as few:
        assert sum(p.requires_grad for p in model.parameters()) == len(few) == 3
        raise RuntimeError
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("additive", [False, True])
def test_hidden_columns_are_closed_and_no_row_is_empty(additive: bool) -> None:
    keep = torch.tensor([[True, False, True]])
    visible = torch.tensor([[[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]]).bool()
    if not additive:
        assert torch.equal(reference.hide(None, keep), visible)
    else:
        lowest = torch.finfo(torch.float32).min
        causal = torch.full((1, 1, 3, 3), lowest).triu(1)
        assert torch.equal(reference.hide(causal, keep), torch.zeros(1, 1, 3, 3).masked_fill(~visible, lowest))


# the command -----------------------------------------------------------------------------------------------


def test_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(save_folder("qwen2_5_vl", tmp_path))
    options = ["--layer", "1", "--keep", "6", "--method", "fastv", "--dtype", "float32", "--attn", "eager"]
    assert main(["check", folder, *options, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "fastv: reduced = dropped tokens masked" in out and "kept 12 of" in out and "layer 1" in out


def test_command_fails_when_a_law_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        forward_state.ForwardState, "gather_rotary", lambda self, x, stage: x[..., : self.stages[stage].kept.length, :]
    )
    folder = str(save_folder("llava", tmp_path))
    assert main(["check", folder, "--method", "random", "--device", "cpu"]) == 1
    assert "does not hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "99"], "expected 0 to 4"),
        (["--keep", "0"], "expected a number of tokens"),
        (["--method", "drat"], "did you mean dart"),
    ],
)
def test_command_refuses_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    folder = str(save_folder("llava", tmp_path))
    assert main(["check", folder, "--device", "cpu", *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("check: ") and message in last


def test_command_names_a_folder_that_holds_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "has no processor" in capsys.readouterr().err


def test_errors_keep_their_traceback_when_debugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DART_TRAIN_DEBUG", "1")
    with pytest.raises((ValueError, OSError)):
        main(["check", str(tmp_path)])


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["chek"], 2), (["--help"], 0)])
def test_commands_are_listed(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    shown = err if code else out
    assert all(f"  {command} " in shown for command in ("check", "bench", "data"))
    assert ("unknown command 'chek'" in shown) == (argv == ["chek"])


def test_check_command_tests_the_trained_scorer_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = save_folder("llava", tmp_path / "llava"), FAMILIES["llava"].model()
    stage = Learned(keep=0.25, layer=1, share=0.5)
    scorer = stage.make_scorer(model.config.get_text_config().hidden_size)
    write_scorers(folder, {f"layer_1.{name}": tensor for name, tensor in scorer.state_dict().items()}, model)
    write_reducers(folder, [stage])
    assert main(["check", str(folder), "--method", "dart"]) == 0
    output = capsys.readouterr().out
    assert "Learned(" in output or "learned" in output, output
