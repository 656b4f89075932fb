"""`show`, the function and the command: from an image and a question to a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import dart_train.checkpoints
from dart_train.__main__ import main
from dart_train.reduction import DART, Balance, FastV
from dart_train.visualization import show
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


def test_show_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image, out = save_folder("qwen2_vl", tmp_path / "model"), tmp_path / "a.png", tmp_path / "new" / "page.png"
    make_image(2).save(image)
    ask = ["show", str(folder), "--image", str(image), "--image", str(image), "--question", "what is it"]
    assert main([*ask, "--methods", "dart,random", "--keep", "12", "--out", str(out), "--device", "cpu"]) == 0
    with Image.open(out) as page:
        assert page.width == 3 * 336 + 4 * 16
    assert str(out) in capsys.readouterr().out
    assert torch.is_grad_enabled()


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
