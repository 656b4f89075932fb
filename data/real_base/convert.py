"""The weight files of the two packages as transformers models; needs gguf and onnx (`pip install .[real]`).

Nothing is trained or rounded here: GGUF's 4-bit weights are expanded to float32, ONNX's float32 weights are copied.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model, LlamaForCausalLM

ENCODER_LAYER = "backbone.encoder.layer."


def check_readers() -> None:
    """Raises ValueError if a package that reads the weight files is missing."""
    if missing := [name for name in ("gguf", "onnx") if find_spec(name) is None]:
        raise ValueError(f"{' and '.join(missing)} not installed: the pretrained parts need it (pip install .[real])")


def convert_language(weights: Path) -> tuple[LlamaForCausalLM, Any]:
    """The language model of a GGUF file, in float32, and its tokenizer.

    `save_pretrained` refuses a model that was loaded from GGUF, so its weights are put into a new one."""
    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    config = loaded.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    state = {name: tensor.float() for name, tensor in loaded.state_dict().items()}
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


def convert_vision(weights: Path) -> Dinov2Model:
    """The DINOv2 in an ONNX file. The decoder that the package added for its saliency maps is left out."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(weights)).graph
    arrays = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    # The exporter stored each linear layer's weight transposed and without its name: the node has the name.
    linear = {
        node.name.strip("/").removesuffix("/MatMul").replace("/", "."): arrays[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    state = _vision_state(arrays, linear)
    # With the names that DINOv2 has on the hub; `from_pretrained` renames them as the installed release needs it.
    return Dinov2Model.from_pretrained(None, config=_vision_config(state), state_dict=state, dtype=torch.float32).eval()


def _vision_state(arrays: dict[str, np.ndarray], linear: dict[str, np.ndarray]) -> dict[str, Tensor]:
    named = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    named |= {f"{name}.weight": array for name, array in linear.items() if name.startswith(ENCODER_LAYER)}
    state = {name.removeprefix("backbone."): torch.from_numpy(np.array(array)) for name, array in named.items()}
    # Positions were folded into constants: one of the class token, [1, 1, D], one of all patches, [1, P, D].
    width = state["embeddings.cls_token"].shape[-1]
    folded = sorted(
        (array for name, array in arrays.items() if name.startswith("onnx::") and array.shape[::2] == (1, width)),
        key=lambda array: array.shape[1],
    )
    state["embeddings.position_embeddings"] = torch.from_numpy(np.concatenate(folded, axis=1))
    state["embeddings.mask_token"] = torch.zeros(1, width)  # used in pretraining only; the export has none
    return state


def _vision_config(state: dict[str, Tensor]) -> Dinov2Config:
    patches = state["embeddings.position_embeddings"].shape[1] - 1
    width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        mlp_ratio=state["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        patch_size=patch,
        image_size=patch * math.isqrt(patches),
    )
