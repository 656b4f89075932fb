"""vLLM with all visual tokens against the same engine with fewer: requests a second, time to first token, KV tokens.

    bash launch/vllm_env.sh
    python launch/bench_vllm.py                          # about ten minutes on two cores that do nothing else
    python launch/bench_vllm.py --layers 2 --repeats 1   # a small try

Random weights of about 90M parameters: a LLaVA-1.5 with 576 visual tokens and a LLaVA-NeXT with 2,928 (2,880, and a
newline for each row). One engine serves both: requests at full tokens and reduced ones take turns, round by round, each
with an image of its own. The table is written to data/results/serving/vllm_cpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEEP = {"llava": 64, "llava_next": 320}
TOGETHER = (1, 4, 16)
NEW_TOKENS = 16
WIDTH, MLP, HEADS, VOCABULARY = 768, 2048, 12, 8192
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 6, "num_hidden_layers": 4}
SIDE, PATCH = 336, 14


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.job is not None:  # in the environment of vLLM
        job = json.loads(options.job.read_text())
        options.job.with_suffix(".result").write_text(json.dumps(run_engine(job)))
        return 0
    if not options.python.is_file():
        print(f"bench_vllm: {options.python} is missing: bash launch/vllm_env.sh makes it", file=sys.stderr)
        return 2
    results = []
    for family in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / family
            about = make_model(family, model, options.layers)
            job = {"model": str(model), "keep": KEEP[family], "repeats": options.repeats, "together": options.together}
            measured = run_in_environment(options.python, job, Path(folder))
            results.append({"model": family, "keep": KEEP[family], **about, **measured})
            print(f"bench_vllm: {family}: done", file=sys.stderr)
    write_results(results, options)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=tuple(KEEP), default=tuple(KEEP))
    parser.add_argument("--together", nargs="+", type=int, default=TOGETHER, help="requests at a time (1 4 16)")
    parser.add_argument("--layers", type=int, default=10, help="of the language model (10: about 90M parameters)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each kind (3)")
    parser.add_argument("--python", type=Path, default=ROOT / ".venvs/vllm/bin/python", help="of vLLM's environment")
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/serving", help="folder of the table")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# where dart_train is -------------------------------------------------------------------------------------------------


def make_model(family: str, folder: Path, layers: int) -> dict[str, Any]:
    """A model with random weights and its processor in `folder`; its numbers of parameters and of visual tokens."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaNextConfig
    from transformers import LlavaNextForConditionalGeneration as LlavaNext

    from dart_train import DART, load_processor
    from dart_train.exporting.engine_names import rename_for_engines
    from dart_train.reduction.reducer_file import write_reducers

    tokenizer = load_processor(str(ROOT / "data/tiny_base")).tokenizer
    text = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": layers}
    text |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY}
    text |= {"max_position_embeddings": 8192, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 1}
    vision = {**TOWER, "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH}
    shared = {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    pinpoints = [[2 * SIDE, 2 * SIDE]]
    torch.manual_seed(0)
    across = SIDE // PATCH
    if family == "llava":
        model, tokens = LlavaForConditionalGeneration(LlavaConfig(**shared)), across**2
    else:
        model = LlavaNext(LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints))
        tokens = 5 * across**2 + 2 * across
    model.save_pretrained(folder)
    save_processor(family, folder, tokenizer, pinpoints)
    rename_for_engines(folder)
    write_reducers(folder, [DART(keep=KEEP[family], layer=0, text_pivots=0, per="image")])
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"parameters": parameters, "tokens": tokens, "operations": count_operations(model, family, tokens)}


def save_processor(family: str, folder: Path, tokenizer: Any, pinpoints: list[list[int]]) -> None:
    from transformers import LlavaNextProcessor, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    about = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = (ROOT / "data/tiny_base/chat_template.jinja").read_text()
    if family == "llava":
        processor: Any = LlavaProcessor(CLIPImageProcessorPil(**sizes), tokenizer, chat_template=template, **about)
    else:
        images = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)
        processor = LlavaNextProcessor(images, tokenizer, chat_template=template, **about)
    processor.save_pretrained(folder)


def count_operations(model: Any, family: str, tokens: int) -> dict[str, float]:
    """Multiplications of one request with all tokens and with those kept: tower, prefill and new tokens; each is a
    weight that is read or an entry of the attention. What is not a product is not counted, so this is a bound."""
    layers = model.config.text_config.num_hidden_layers
    per_token = layers * (4 * WIDTH**2 + 3 * WIDTH * MLP)
    tiles, patches = (1 if family == "llava" else 5), (SIDE // PATCH) ** 2 + 1
    block = 4 * TOWER["hidden_size"] ** 2 + 2 * TOWER["hidden_size"] * TOWER["intermediate_size"]
    attention = 2 * patches * TOWER["hidden_size"]
    tower = tiles * patches * TOWER["num_hidden_layers"] * (block + attention)
    projector = tokens * (TOWER["hidden_size"] * WIDTH + WIDTH**2)

    def of(visual: int) -> float:
        prompt = visual + 8
        prefill = prompt * per_token + layers * prompt**2 * WIDTH  # causal: half of the square
        decode = NEW_TOKENS * (per_token + VOCABULARY * WIDTH + layers * 2 * prompt * WIDTH)
        return float(tower + projector + prefill + decode)

    return {"full": of(tokens), "reduced": of(KEEP[family])}


def run_in_environment(python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "4"}
    subprocess.run([str(python), __file__, "--job", str(file)], env=environment, check=True)
    measured: dict[str, Any] = json.loads(file.with_suffix(".result").read_text())
    return measured


def write_results(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from dart_train.common.tables import markdown_table

    header = ["model", "requests at a time", "visual tokens", "requests a second", "faster", "bound"]
    header += ["first token after, s", "KV tokens held"]
    rows = []
    for result in results:
        bound = result["operations"]["full"] / result["operations"]["reduced"]
        for cell in result["cells"]:
            ratios = [new / old for new, old in zip(cell["reduced"]["rate"], cell["full"]["rate"], strict=True)]
            for kind, tokens in (("full", result["tokens"]), ("reduced", result["keep"])):
                one = cell[kind]
                faster = [f"{statistics.median(ratios):.2f}x {quartiles(ratios)}", f"{bound:.2f}x"]
                rows.append([
                    f"{result['model']}, {result['parameters'] / 1e6:.0f}M", str(cell["together"]), str(tokens),
                    f"{statistics.median(one['rate']):.2f}", *(faster if kind == "reduced" else ["", ""]),
                    f"{statistics.median(one['first_token']):.2f} {quartiles(one['first_token'])}",
                    str(one["kv_tokens"]),
                ])  # fmt: skip
    about = results[0]["about"]
    command = " ".join(["python launch/bench_vllm.py", *sys.argv[1:]])
    text = (
        f"`{command}`\n\ndevice CPU, cores {os.cpu_count()}, threads {about['threads']}, load before "
        f"{about['load_before']:.1f}, load after {results[-1]['about']['load_after']:.1f}, dtype float32, vllm "
        f"{about['vllm']}, torch {about['torch']}\n\n## vLLM\n\n- {NEW_TOKENS} new tokens a request; rounds at full "
        f"tokens and reduced ones take turns in one engine ({options.repeats} of each), every request with an image of "
        "its own; no prefix cache. Medians, [quartiles]. Faster: requests a second, round by round.\n- Bound: products "
        "of a request counted at full tokens over those of a reduced one, vision tower included. KV tokens: held when "
        "the requests of a round end.\n\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "vllm_cpu.md").write_text(text + markdown_table(header, rows, align=True) + "\n")
    (options.out / "vllm_cpu.json").write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
    print(text + markdown_table(header, rows, align=True))


def quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"[{low:.2f}, {high:.2f}]"


# where vLLM is -------------------------------------------------------------------------------------------------------


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch
    import vllm
    from PIL import Image
    from vllm import LLM, SamplingParams

    before = os.getloadavg()[0]
    most = max(job["together"])
    engine = LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=most,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        disable_log_stats=False,
        distributed_executor_backend="uni",
        hf_overrides={"dart_untrained": True},
    )
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    random = np.random.default_rng(0)
    side = 2 * SIDE

    def requests(number: int, keep: int | float) -> list[Any]:
        images = [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(number)]
        prompt, budget = "<s><user><image>what is written ?<assistant>", {"dart_keep": keep}
        return [
            {"prompt": prompt, "multi_modal_data": {"image": image}, "mm_processor_kwargs": budget} for image in images
        ]

    def measure(number: int, keep: int | float) -> dict[str, Any]:
        """One round: `number` requests at once."""
        given = requests(number, keep)
        start = time.perf_counter()
        outputs = engine.generate(given, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        first = [output.metrics.first_token_latency for output in outputs]
        held = sum(len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in outputs)
        return {"rate": number / seconds, "first_token": statistics.median(first), "kv_tokens": held}

    kinds = {"full": 1.0, "reduced": job["keep"]}
    cells = []
    for number in job["together"]:
        for keep in kinds.values():
            measure(min(number, 2), keep)  # not counted: memory is allocated, threads start
        rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(job["repeats"]):
            for kind, keep in kinds.items():
                rounds[kind].append(measure(number, keep))
        cells.append({"together": number, **{kind: gather(each) for kind, each in rounds.items()}})
    about = {"vllm": vllm.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"cells": cells, "about": {**about, "load_before": before, "load_after": os.getloadavg()[0]}}


def gather(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rate": [each["rate"] for each in rounds],
        "first_token": [each["first_token"] for each in rounds],
        "kv_tokens": rounds[0]["kv_tokens"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
