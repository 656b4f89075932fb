"""Which wheels travel to a machine without network: what is needed, not kept there, and pinned. No network here."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.wheels import CONSTRAINTS, ROOTS, choose, read_pins, requirements_of

NEEDS = {
    "peft": ["torch>=1.13", "transformers", "accelerate>=0.2", 'black; extra == "quality"'],
    "transformers": ["numpy", "tokenizers>=0.2", 'tomli; python_version < "3.11"', 'pywin32; sys_platform == "win32"'],
    "accelerate": ["torch", "nvidia-nccl-cu13", "transformers"],
    "tokenizers": [],
}
PINS = {"peft": "1.0", "transformers": "5.0", "accelerate": "1.0", "tokenizers": "0.3", "numpy": "2.0"}


def chosen(roots: list[str], pins: dict[str, str]) -> dict[str, str]:
    return choose(roots, pins, lambda name: [Requirement(line) for line in NEEDS[name]])


def test_wheels_are_all_that_is_needed_and_not_kept() -> None:
    """torch, numpy and NVIDIA's stay; extras, other platforms and older Pythons are not needed; circles end."""
    assert chosen(["peft"], PINS) == {
        "peft": "the GPU run",
        "transformers": "peft",
        "accelerate": "peft",
        "tokenizers": "transformers",
    }


def test_wheels_need_a_pin() -> None:
    with pytest.raises(ValueError, match="tokenizers is needed by transformers: expected a line tokenizers==VERSION"):
        chosen(["peft"], {name: version for name, version in PINS.items() if name != "tokenizers"})


def test_wheels_refuse_a_pin_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"transformers needs tokenizers>=0\.2, but constraints\.txt has .*==0\.1"):
        chosen(["peft"], {**PINS, "tokenizers": "0.1"})


def test_wheels_have_pins_of_their_roots() -> None:
    assert set(ROOTS) <= set(read_pins(CONSTRAINTS.read_text(encoding="utf-8")))


def test_wheels_read_requirements_from_metadata(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "a-1.dist-info/METADATA", "Name: a\nRequires-Dist: b>=2\nRequires-Dist: c; extra == 'x'\n\ntext"
        )
    assert [requirement.name for requirement in requirements_of(wheel)] == ["b", "c"]
