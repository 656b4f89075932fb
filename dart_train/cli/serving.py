"""The command `serve`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import options as cli
from .model_options import add_loading, add_model, add_reduction, load_model, model_problems

if TYPE_CHECKING:
    from ..serving.limits import ServerSettings

_MIB = 2**20
_KEY = "DART_TRAIN_API_KEY"


@cli.reports_errors("serve")
def serve(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        from ..serving.uvicorn_compat import DrainingServer, bind
    except ImportError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ImportError(f"{error}; the server needs the packages of pip install 'dart-train[serve]'") from error
    from ..serving.application import ModelServer

    settings = _settings(options)
    listening = bind(options.host, options.port)
    with listening:
        if problems := model_problems(options):
            raise ValueError("\n".join(problems))
        server = ModelServer(load_model("serve", options), settings)
        server.worker.start()
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"serve: {settings.name} at {address}/v1", flush=True)
        running = DrainingServer(server)
        running.run(sockets=[listening])
        server.worker.close()
    print("serve: stopped", flush=True)
    return cli.INTERRUPTED if running.forced else cli.OK


def _settings(options: argparse.Namespace) -> ServerSettings:
    from ..serving.limits import ServerLimits, ServerSettings

    limits = ServerLimits(
        int(options.max_image_mib * _MIB),
        int(options.max_image_megapixels * 1e6),
        options.max_images,
        options.max_prompt_tokens,
        options.max_tokens,
        options.max_batch,
        options.max_waiting,
        options.max_seconds,
        options.max_batches,
    )
    folders = tuple(Path(folder) for folder in options.images)
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise ValueError(f"--images {', '.join(missing)}: not a folder")
    key = options.api_key or os.environ.get(_KEY) or None
    if key is None and not _is_loopback(options.host):
        print(f"serve: {options.host} can be reached from other machines; give --api-key or {_KEY}", file=sys.stderr)
    name = options.name or Path(options.path).name or options.path
    return ServerSettings(name, key, folders, min(options.default_tokens, options.max_tokens), limits)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser_of(
        "serve",
        "An OpenAI-compatible server: /v1/chat/completions, /v1/models, /health and /metrics. Greedy unless a request "
        "gives a temperature above 0.",
        f"SIGTERM or Ctrl-C: what was accepted is answered, new requests get status 503, the exit code is {cli.OK}.",
    )
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=cli.not_negative_int, default=8000, help="0: any free one (8000)")
    parser.add_argument("--api-key", help=f"requests to /v1 must have it; better in {_KEY}, which no one else sees")
    parser.add_argument("--name", help="of the model, in requests (default: the last part of the path)")
    files = "a folder whose files requests may name as file:// URLs; can be given several times"
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help=files)
    add_reduction(parser)
    parser.add_argument("--max-batch", type=cli.positive_int, default=8, help="requests generated together (8)")
    batches = "batches that take turns, so that a long answer delays no other; each holds a cache (4)"
    parser.add_argument("--max-batches", type=cli.positive_int, default=4, help=batches)
    parser.add_argument("--max-waiting", type=cli.positive_int, default=64, help="more get status 429 (64)")
    parser.add_argument("--max-tokens", type=cli.positive_int, default=1024, help="of an answer (1024)")
    parser.add_argument("--default-tokens", type=cli.positive_int, default=256, help="if a request has no limit (256)")
    prompt = "of a prompt, with those of images, before the reduction (16384)"
    parser.add_argument("--max-prompt-tokens", type=cli.positive_int, default=16_384, help=prompt)
    parser.add_argument("--max-seconds", type=cli.positive_float, default=300.0, help="of a request (300)")
    parser.add_argument("--max-images", type=cli.positive_int, default=8, help="of a request (8)")
    parser.add_argument("--max-image-mib", type=cli.positive_float, default=20.0, help="of an image as sent (20)")
    parser.add_argument("--max-image-megapixels", type=cli.positive_float, default=50.0, help="of an image (50)")
    add_loading(parser)
    return parser
