"""`python -m dart_train env [--json]`: paste this into a bug report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from ..common.environment import Facts, gather, warnings_for


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m dart_train env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for a program to read")
    options = parser.parse_args(argv)
    facts = gather()
    if options.json:
        print(json.dumps({**facts.to_dict(), "warnings": warnings_for(facts)}, indent=2))
    else:
        print("\n".join([*told(facts), *(f"warning: {line}" for line in warnings_for(facts))]))
    return 0


def told(facts: Facts) -> Iterator[str]:
    yield f"python         {facts.python} on {facts.system}, {facts.cores} cores"
    for name, version in facts.versions.items():
        yield f"{name:14} {version or '-'}"
    yield f"{'device':14} {_devices(facts)}"
    yield f"{'nvcc':14} {'found' if facts.nvcc else '-'}"
    yield f"{'/dev/shm':14} {'-' if facts.shared_memory_gib is None else f'{facts.shared_memory_gib} GiB'}"
    for name, value in facts.variables.items():
        yield f"{name}={value}"


def _devices(facts: Facts) -> str:
    if not facts.gpus:
        return "CPU only" + (f" (torch built for CUDA {facts.cuda})" if facts.cuda else "")
    return ", ".join(f"{gpu.name} ({gpu.memory_gib} GiB, sm_{''.join(map(str, gpu.capability))})" for gpu in facts.gpus)
