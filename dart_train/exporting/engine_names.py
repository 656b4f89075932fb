"""Names of weights that inference engines expect, in an exported folder.

transformers 5.23 gave CLIP and SigLIP towers a flatter structure, `vision_tower.encoder` in place of
`vision_tower.vision_model.encoder`. It loads files with either names; engines know the earlier ones only. A model that
was loaded from a file with those is saved with them too, one that was built in memory is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

_FLAT = re.compile(r"^((?:model\.)?vision_tower\.)(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)")
_TOWERS = ("clip_vision_model", "siglip_vision_model")
INDEX = "model.safetensors.index.json"


def rename_for_engines(folder: Path) -> int:
    """Gives the vision tower's weights in `folder` the names that engines expect; how many were renamed."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (config.get("vision_config") or {}).get("model_type") not in _TOWERS:
        return 0
    renamed = sum(map(_rename_in_file, sorted(folder.glob("*.safetensors"))))
    index = folder / INDEX
    if renamed and index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {engine_name(name): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return renamed


def index_weights(folder: Path) -> None:
    """Lists the model's weights in an index. Engines read every safetensors file of a folder that has none, and would
    take a scorer's weights for the model's."""
    index, file = folder / INDEX, folder / "model.safetensors"
    if index.is_file() or not file.is_file():
        return
    with safe_open(file, "pt") as content:
        names = list(content.keys())
    weight_map = dict.fromkeys(sorted(names), file.name)
    content = {"metadata": {"total_size": file.stat().st_size}, "weight_map": weight_map}
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def engine_name(name: str) -> str:
    return _FLAT.sub(r"\1vision_model.", name)


def _rename_in_file(file: Path) -> int:
    """A file without such a name is not written again."""
    with safe_open(file, "pt") as content:
        names, metadata = list(content.keys()), content.metadata()
        if all(engine_name(name) == name for name in names):
            return 0
        tensors = {engine_name(name): content.get_tensor(name) for name in names}
    draft = file.with_suffix(".renamed")
    save_file(tensors, draft, metadata)
    draft.replace(file)
    return sum(engine_name(name) != name for name in names)
