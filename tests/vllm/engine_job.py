"""A script for the Python of the vLLM environment: starts one engine, asks it, and writes what it answered.

    python engine_job.py job.json result.json

The job: {"model", "engine": options of `vllm.LLM`, "rounds": [[request, ...], ...]}. The requests of a round are given
to the engine together. A request: {"prompt", "images": files, "frames": files of a video, "budget", "adapter",
"max_tokens"}. The result: {"rounds": [[answer, ...], ...]}, or {"refused": message} where the engine did not start. An
answer: {"text", "tokens", "first": {token: log-probability}, "prompt_tokens", "cached_tokens"}, or {"error": message}.

With {"configs": [{"model", "engine"}, ...]} in place of rounds no engine starts: for each, what making its
configuration raised, or null. With {"process": [request, ...], "out": file} the inputs that the model's processor makes
there are saved: with torchvision images are prepared by another backend, and pixels differ by rounding.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # by default each process wants a NUMA node of its own
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
)
OPTIONS = {
    "distributed_executor_backend": "uni",
    "enforce_eager": True,
    "dtype": "float32",
    "seed": 0,
    "max_model_len": 1024,
    "max_num_seqs": 8,
}
LOGPROBS = 20


def main(job: dict[str, Any]) -> dict[str, Any]:
    if "configs" in job:
        return {"refusals": [try_config(each) for each in job["configs"]]}
    if "process" in job:
        return save_inputs(job)
    from vllm import LLM

    try:
        engine = LLM(model=job["model"], **{**OPTIONS, **job.get("engine", {})})
    except Exception as error:
        return {"refused": "".join(traceback.format_exception(error))}
    return {"rounds": [ask(engine, requests) for requests in job["rounds"]]}


def try_config(job: dict[str, Any]) -> str | None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    try:
        EngineArgs(model=job["model"], **{**OPTIONS, **job.get("engine", {})}).create_engine_config()
    except Exception as error:
        return str(error)
    return None


def save_inputs(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(job["model"])
    saved = []
    for request in job["process"]:
        data = prompt_of(request).get("multi_modal_data", {})
        options: dict[str, Any] = {}
        if "image" in data:
            options["images"] = data["image"]
        if "video" in data:
            [(frames, about)] = data["video"]
            options |= {"videos": [frames], "do_sample_frames": False}
            options["video_metadata"] = [{name: about[name] for name in ("fps", "duration", "total_num_frames")}]
        begin, text = processor.tokenizer.bos_token, request["prompt"]
        options["add_special_tokens"] = not (begin and text.startswith(begin))
        saved.append(dict(processor(text=[text], return_tensors="pt", **options)))
    torch.save(saved, job["out"])
    return {}


def ask(engine: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return answers(engine, requests)
    except ValueError as error:
        if len(requests) > 1:
            raise
        return [{"error": str(error)}]


def answers(engine: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapters = [LoRARequest("adapter", 1, request["adapter"]) if "adapter" in request else None for request in requests]
    sampling = [
        SamplingParams(temperature=0, max_tokens=request.get("max_tokens", 6), logprobs=LOGPROBS)
        for request in requests
    ]
    prompts = [prompt_of(request) for request in requests]
    options = {"lora_request": adapters} if any(adapters) else {}
    outputs = engine.generate(prompts, sampling, use_tqdm=False, **options)
    return [answer_of(output) for output in outputs]


def prompt_of(request: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    prompt: dict[str, Any] = {"prompt": request["prompt"]}
    data: dict[str, Any] = {}
    if request.get("images"):
        data["image"] = [Image.open(file).convert("RGB") for file in request["images"]]
    if request.get("frames"):
        import numpy as np

        frames = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in request["frames"]])
        count = len(frames)
        about = {"fps": 2.0, "duration": count / 2, "total_num_frames": count, "frames_indices": list(range(count))}
        data["video"] = [(frames, {**about, "do_sample_frames": False})]
    if data:
        prompt["multi_modal_data"] = data
    if "budget" in request:
        prompt["mm_processor_kwargs"] = {"dart_keep": request["budget"]}
    return prompt


def answer_of(output: Any) -> dict[str, Any]:
    [completion] = output.outputs
    return {
        "text": completion.text,
        "tokens": list(completion.token_ids),
        "first": {str(token): each.logprob for token, each in completion.logprobs[0].items()},
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
    }


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
