"""The load balancing loss of mixtures of experts counts the tokens that each layer ran on."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from dart_train import DART, KeepAll, Random, attach
from dart_train.hooks.transformers_compat import ROUTER_LOSS
from tests.fixtures.reference_forward import masked_logits
from tests.laws.cases import batch_of
from tests.zoo import FAMILIES

EXPERTS, TOP = 4, 2
MOE = {"num_experts": EXPERTS, "num_experts_per_tok": TOP, "moe_intermediate_size": 32, "norm_topk_prob": True}


@cache
def model_of() -> Any:
    """Qwen3-VL-MoE with experts in all layers but the first."""
    config = FAMILIES["qwen3_vl"].model().config.to_dict()
    text = {**config["text_config"], **MOE, "model_type": "qwen3_vl_moe_text", "mlp_only_layers": [0]}
    tower = {**config["vision_config"], "model_type": "qwen3_vl_moe_vision"}
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.Qwen3VLMoeForConditionalGeneration._from_config(
            hf.Qwen3VLMoeConfig(text_config=text, vision_config=tower, **ids), attn_implementation="sdpa"
        )
    return model.eval()


def routed(model: Any) -> tuple[list[Tensor], list[Any]]:
    """What each router returns from now on, and the hooks."""
    found = list[Tensor]()
    routers = [layer.mlp.gate for layer in model.get_decoder().layers if hasattr(layer.mlp, "gate")]
    return found, [router.register_forward_hook(lambda _, args, out: found.append(out[0])) for router in routers]


def loss_by_hand(logits: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Plain loops over layers and tokens."""
    used, probability, tokens = torch.zeros(EXPERTS), torch.zeros(EXPERTS), 0
    for layer, mask in zip(logits, masks, strict=True):
        for row in layer.view(-1, EXPERTS)[mask.flatten()]:
            used[row.topk(TOP).indices] += 1
            probability += row.softmax(-1)
            tokens += 1
    return EXPERTS * ((used / tokens) * (probability / tokens)).sum()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("output", ["expand", "compact"])
@pytest.mark.parametrize("layers", [(2,), (0,), (1, 3)], ids=str)
def test_router_loss_counts_kept_tokens(layers: tuple[int, ...], output: Any, side: str) -> None:
    model, batch = model_of(), batch_of("qwen3_vl", side=side, labels=True)
    stages = [Random(layer=layer, keep=keep) for layer, keep in zip(layers, (20, 8), strict=False)]
    with torch.no_grad(), attach(model, stages, output=output) as attached:
        plain = model(**batch).loss
        found = model(**batch, output_router_logits=True)
        kept = attached.last
    logits, hooks = routed(model)
    with torch.no_grad():
        masked_logits(model, batch, list(zip(layers, kept.stages, strict=True)))
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].bool()
    masks = [([real, *kept.stages][sum(start <= layer for start in layers)]) for layer in range(1, 5)]
    truth = loss_by_hand(logits, masks)
    torch.testing.assert_close(found.aux_loss, truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, plain + model.config.text_config.router_aux_loss_coef * truth)


def test_keep_all_has_the_plain_models_router_loss() -> None:
    model, batch = model_of(), batch_of("qwen3_vl", labels=True)
    with torch.no_grad():
        plain = model(**batch, output_router_logits=True).aux_loss
        with attach(model, KeepAll()):
            torch.testing.assert_close(model(**batch, output_router_logits=True).aux_loss, plain)


@pytest.mark.parametrize("images", [(1, 2, 0), (0, 0)])
def test_a_teachers_routing_is_not_part_of_the_loss(images: tuple[int, ...]) -> None:
    model, batch = model_of(), batch_of("qwen3_vl", images, labels=True)
    with torch.no_grad(), attach(model, DART(keep=8, layer=3)) as attached:
        alone = model(**batch, output_router_logits=True, use_cache=False).aux_loss
        with attached.with_teacher(1.0):
            both = model(**batch, output_router_logits=True, use_cache=False).aux_loss
    torch.testing.assert_close(both, alone)


def test_the_function_is_replaced_inside_a_forward_only() -> None:
    """Also where the forward raises after it."""
    model, batch = model_of(), batch_of("qwen3_vl", labels=True)
    namespace = inspect.unwrap(type(model).forward).__globals__
    before = namespace[ROUTER_LOSS]
    with torch.no_grad(), attach(model, DART(keep=8)):
        model(**batch, output_router_logits=True)
        assert namespace[ROUTER_LOSS] is before
        handle = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**batch, output_router_logits=True)
        handle.remove()
        assert namespace[ROUTER_LOSS] is before
