"""`show`, the function and the command: from an image and a question to a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import dart_train.checkpoints
from dart_train.__main__ import main
from dart_train.cli.evaluation import _show_parser
from dart_train.hooks import attach
from dart_train.models.prompts import build_inputs, user_message
from dart_train.models.structure import find_parts
from dart_train.reduction import DART, Balance, FastV, TowerDART
from dart_train.reduction.reducer_file import write_reducers
from dart_train.reduction.tower import Representatives
from dart_train.visualization import show
from dart_train.visualization.figure import answer_with
from dart_train.visualization.request import check_request
from dart_train.visualization.tower import choose_in_tower, tokens_of_units
from tests.zoo import FAMILIES, make_image, save_folder


@pytest.mark.parametrize("name", FAMILIES)
def test_show_works_for_every_family_and_leaves_the_model_unchanged(name: str) -> None:
    model, processor = FAMILIES[name].model(), FAMILIES[name].processor()
    before, state = set(vars(model)), model.training
    page = show(model, processor, [make_image(1)], "what is left of it", [DART(keep=0.3), FastV(keep=5)], width=120)
    assert page.width == 3 * 120 + 4 * 16
    assert set(vars(model)) == before and model.training == state
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_panels_depend_on_the_method_only() -> None:
    """The same method twice gives the same panel, and another method another one."""
    model, processor = FAMILIES["llava"].model(), FAMILIES["llava"].processor()
    methods = [FastV(keep=8), FastV(keep=8), Balance(keep=8, alpha=0.0)]
    page = show(model, processor, [make_image(1, (64, 64))], "why", methods, width=100)
    panels = [page.crop((16 + 116 * i, 110, 116 + 116 * i, page.height - 50)).tobytes() for i in range(4)]
    assert panels[1] == panels[2] and panels[0] != panels[1] != panels[3]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_a_panel_shows_what_the_vision_tower_does_not_see(name: str) -> None:
    model, processor = FAMILIES[name].model(), FAMILIES[name].processor()
    image, stage = make_image(1), TowerDART(layer=0, keep=0.5)
    page = show(model, processor, [image], "what is it", [DART(keep=8)], width=100, tower=stage)
    assert page.width == 3 * 100 + 4 * 16
    inputs = build_inputs(processor, [[user_message("what is it", [image])]])
    number = int(torch.isin(inputs["input_ids"], torch.tensor(find_parts(model).visual_ids)).sum())
    seen = choose_in_tower(model, inputs, stage, number)
    with attach(model, stage) as attached, torch.no_grad():
        model(**inputs)
        (units,) = attached.tower_units
    assert units is not None and len(seen.kept) == number
    assert seen.number == len(units.kept) if len(units.of) == number else len(units.kept) / 4 <= seen.number <= number
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_units_that_become_one_token_are_seen_if_one_of_them_is() -> None:
    of = torch.zeros(16, dtype=torch.long)
    units = Representatives(of, torch.tensor([0, 7, 13]), (3,))
    assert tokens_of_units(units, 16).nonzero().flatten().tolist() == [0, 7, 13]
    assert tokens_of_units(units, 4).tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="16 units of 1 images or tiles, and the prompt 9 visual tokens"):
        tokens_of_units(units, 9)


def test_show_command_draws_the_stage_in_the_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image, out = save_folder("qwen2_vl", tmp_path / "model"), tmp_path / "a.png", tmp_path / "page.png"
    make_image(2).save(image)
    ask = ["show", str(folder), "--image", str(image), "--question", "what", "--methods", "dart", "--device", "cpu"]
    assert main([*ask, "--tower", "{layer: 1, keep: 0.5}", "--out", str(out)]) == 0
    with Image.open(out) as page:
        assert page.width == 3 * 336 + 4 * 16
    assert main([*ask, "--tower", "half", "--out", str(out)]) == 2
    assert main([*ask, "--tower", "{keep: 7}", "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "expected a mapping" in err and "expected a ratio" in err


def test_show_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image, out = save_folder("qwen2_vl", tmp_path / "model"), tmp_path / "a.png", tmp_path / "new" / "page.png"
    make_image(2).save(image)
    ask = ["show", str(folder), "--image", str(image), "--image", str(image), "--question", "what is it"]
    assert main([*ask, "--methods", "dart,random", "--keep", "12", "--out", str(out), "--device", "cpu"]) == 0
    with Image.open(out) as page:
        assert page.width == 3 * 336 + 4 * 16
    assert str(out) in capsys.readouterr().out
    assert torch.is_grad_enabled()


def test_answers_are_those_that_generate_gives() -> None:
    model, processor = FAMILIES["llava"].model(), FAMILIES["llava"].processor()
    inputs = build_inputs(processor, [[user_message("what is it", [make_image(1)])]])

    def generated() -> str:
        made = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return " ".join(processor.tokenizer.decode(made, skip_special_tokens=True).split())

    assert answer_with(model, processor, inputs, []) == generated()
    with attach(model, DART(keep=2)):
        reduced = generated()
    assert answer_with(model, processor, inputs, [DART(keep=2)]) == reduced
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_budget_is_drawn_with_the_options_of_the_training(tmp_path: Path) -> None:
    folder, image, out = save_folder("qwen2_vl", tmp_path / "model"), tmp_path / "a.png", tmp_path / "page.png"
    make_image(2).save(image)
    write_reducers(folder, [DART(keep=5, image_pivots=2)])
    ask = ["show", str(folder), "--image", str(image), "--question", "what", "--methods", "dart,fastv", "--layer", "1"]
    ask += ["--keep", "12, 0.25", "--answer", "--out", str(out), "--device", "cpu"]
    reducers = check_request(_show_parser().parse_args(ask[1:])).reducers
    assert reducers == [*(DART(keep=keep, layer=1, image_pivots=2) for keep in (12, 0.25)),
                        *(FastV(keep=keep, layer=1) for keep in (12, 0.25))]  # fmt: skip
    assert main(ask) == 0
    with Image.open(out) as page:
        assert page.width == 4 * 336 + 5 * 16


def test_problems_are_reported_together_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dart_train.checkpoints, "load", lambda *a, **k: pytest.fail("the model was read"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    ask = ["show", "model", "--image", str(tmp_path / "cat.png"), "--image", str(tmp_path / "broken.png"),
           "--question", " ", "--methods", "dartt,fewer_pixels", "--keep", "1.5", "--out", "page.txt"]  # fmt: skip
    assert main(ask) == 2
    err = capsys.readouterr().err
    for words in (
        "cat.png: no such file",
        "broken.png: not an image that can be opened",
        "--question is empty",
        "did you mean dart",
        "fewer_pixels drops no tokens",
        "--keep=1.5: expected",
        "page.txt",
    ):
        assert words in err, words
    assert main(["show", "model", "--question", "what"]) == 2
    assert "no image: give --image" in capsys.readouterr().err
    assert main(["show", "model", "--image", "x", "--question", "what", "--keep", "many"]) == 2
    assert "--keep 'many': expected a number of tokens" in capsys.readouterr().err
