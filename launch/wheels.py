"""Collects the wheels that a GPU machine without network lacks, with the versions of launch/constraints.txt.

    python launch/wheels.py --out wheels        here, with network, in the environment of the launch scripts
    bash wheels/install.sh                      there; it installs with the machine's python3, or with $PYTHON

Assumed of the machine, which keeps them: x86-64 Linux (glibc 2.28 or newer), Python 3.12, torch 2.11 with CUDA 13 (and
triton, which comes with it), transformers 5.17, numpy, pandas, pyarrow, pillow, matplotlib and setuptools. They are too
large to carry: pyarrow alone is 53 MiB. What the GPU run imports besides travels: newer transformers, peft, deepspeed,
datasets, accelerate, tokenizers, huggingface_hub, pytest, and what they need. Together that stays below 60 MiB.

deepspeed is a source package. Its wheel is built here without compiled operators (DS_BUILD_OPS=0), which the machine
compiles when they are used, so that it does not depend on the version of Python that builds it.
"""

from __future__ import annotations

import argparse
import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ("transformers", "peft", "deepspeed", "datasets", "accelerate", "pytest", "hypothesis", "num2words")
KEPT = frozenset({"torch", "triton", "numpy", "pandas", "pyarrow", "matplotlib", "pillow", "setuptools"})
KEPT_PREFIXES = ("nvidia-", "cuda-")
SOURCE_PACKAGES = frozenset({"deepspeed", "docopt"})
PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)))
MACHINE = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
LIMIT_MIB = 60
CONSTRAINTS = Path(__file__).resolve().parent / "constraints.txt"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python launch/wheels.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("wheels"), help="folder of the wheels (wheels)")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    if present := sorted(out.glob("*.whl")):
        print(f"wheels: {out} has {len(present)} wheels already; give an empty folder", file=sys.stderr)
        return 2
    pins = read_pins(CONSTRAINTS.read_text(encoding="utf-8"))
    chosen = choose(ROOTS, pins, lambda name: requirements_of(fetch(name, pins[name], out)))
    requirements = "".join(f"{name}=={pins[name]}\n" for name in sorted(chosen))
    (out / "requirements.txt").write_text(requirements, encoding="utf-8")
    (out / "install.sh").write_text(INSTALL, encoding="utf-8")
    (out / "install.sh").chmod(0o755)
    size = sum(wheel.stat().st_size for wheel in out.glob("*.whl")) / (1 << 20)
    print(f"wheels: {len(chosen)} packages, {size:.1f} MiB in {out}; on the machine: bash {out}/install.sh")
    if size >= LIMIT_MIB:
        print(f"wheels: {size:.1f} MiB, expected less than {LIMIT_MIB}", file=sys.stderr)
        return 1
    return 0


INSTALL = """#!/usr/bin/env bash
# Installs these wheels over what the machine has; torch and whatever else is not here stays as it is.
#   bash install.sh                     with $PYTHON or python3
#   bash install.sh --target FOLDER     further options go to pip; then PYTHONPATH=FOLDER
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "${PYTHON:-python3}" -m pip install --no-index --no-deps --upgrade --find-links "$here" \\
    -r "$here/requirements.txt" "$@"
"""


def read_pins(text: str) -> dict[str, str]:
    """{name: version} of lines `name==version`."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def choose(
    roots: Iterable[str], pins: dict[str, str], requirements: Callable[[str], list[Requirement]]
) -> dict[str, str]:
    """{name: who needs it} of all that the roots need on the machine and that it does not keep.

    requirements(name): what a package needs, extras and other platforms included.
    """
    chosen: dict[str, str] = {}
    waiting = [(name, "the GPU run") for name in roots]
    while waiting:
        name, needed_by = waiting.pop(0)
        if name in chosen or is_kept(name):
            continue
        if name not in pins:
            raise ValueError(f"{name} is needed by {needed_by}: expected a line {name}==VERSION in {CONSTRAINTS.name}")
        chosen[name] = needed_by
        for requirement in requirements(name):
            needed = canonicalize_name(requirement.name)
            if (requirement.marker is not None and not requirement.marker.evaluate(MACHINE)) or is_kept(needed):
                continue
            if needed in pins and not requirement.specifier.contains(pins[needed], prereleases=True):
                raise ValueError(f"{name} needs {requirement}, but {CONSTRAINTS.name} has {needed}=={pins[needed]}")
            waiting.append((needed, name))
    return chosen


def is_kept(name: str) -> bool:
    return name in KEPT or name.startswith(KEPT_PREFIXES)


def fetch(name: str, version: str, out: Path) -> Path:
    """The wheel of a package for the machine, in `out`."""
    before = set(out.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    where = ["--no-deps", f"{name}=={version}"]
    if name in SOURCE_PACKAGES:
        # Not isolated: deepspeed's setup looks for torch.
        command = [*pip, "wheel", "--quiet", "--no-build-isolation", "--wheel-dir", str(out), *where]
    else:
        command = [*pip, "download", "--quiet", *target, *platforms, "--dest", str(out), *where]
    subprocess.run(command, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    wheel = next(iter(set(out.glob("*.whl")) - before))
    if name in SOURCE_PACKAGES and not wheel.name.endswith("py3-none-any.whl"):
        raise ValueError(f"{wheel.name} was built for one Python version; expected ...py3-none-any.whl")
    print(f"wheels: {wheel.name}, {wheel.stat().st_size / (1 << 20):.2f} MiB", flush=True)
    return wheel


def requirements_of(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
