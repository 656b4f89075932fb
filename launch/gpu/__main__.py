"""The stages one after the other, then one page with what each of them found."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .page import write_page
from .running import Result, run_stage
from .stages import Settings, all_stages


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: torch finds no GPU on this machine; a dry run: --device cpu --scale 0.03", file=sys.stderr)
        return 2
    out = options.out.resolve()
    settings = Settings(options.device, options.scale, out, _memory_bytes(options.device))
    if settings.dry:
        os.environ["OMP_NUM_THREADS"] = "1"  # two stages at a time, perhaps on two cores
    stages = [stage for stage in all_stages(settings) if not options.only or stage.name in options.only]
    started = time.monotonic()

    def run(stage) -> Result:  # type: ignore[no-untyped-def]
        print(f"gpu: {stage.name}: {stage.what}", flush=True)
        result = run_stage(stage, out / stage.name)
        print(f"gpu: {stage.name}: {result.state} after {result.seconds:.0f} s", flush=True)
        return result

    # More than one at a time only where nothing is measured.
    with ThreadPoolExecutor(2 if options.device == "cpu" else 1) as pool:
        results = list(pool.map(run, stages))
    command = " ".join(["bash launch/gpu.sh", *_without_out(argv)])
    page = write_page(out, command, settings, results, time.monotonic() - started)
    print("\n" + page)
    print(f"gpu: written to {out / 'page.md'}")
    if os.environ.get("OUT"):
        collect(out, Path(os.environ["OUT"]))
    return 0 if all(result.state == "passed" for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    names = [stage.name for stage in all_stages(Settings("cuda", 1.0, Path(), 0))]
    parser = argparse.ArgumentParser(prog="bash launch/gpu.sh", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the 7B models; 1: full size")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help="of: " + ", ".join(names))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results (runs/gpu)")
    return parser


def collect(out: Path, to: Path) -> None:
    """The page, and everything but data and checkpoints in one archive."""
    to.mkdir(parents=True, exist_ok=True)

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(entry.name).name
        return None if name == "data" or name.startswith("checkpoint-") else entry

    with tarfile.open(to / "results.tar.gz", "w:gz") as archive:
        archive.add(out, "gpu", filter=wanted)
    for name in ("page.md", "stages.json"):
        shutil.copyfile(out / name, to / name)
    print(f"gpu: copied to {to}: page.md, stages.json and results.tar.gz")


def _memory_bytes(device: str) -> int:
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 0


def _without_out(argv: list[str]) -> list[str]:
    """The command without the folder, which means nothing on another machine."""
    words = list(argv)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return words


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
