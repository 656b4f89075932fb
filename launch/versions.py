"""The tests on other releases of the libraries: `bash launch/test.sh --transformers 5.25.0`, or `--bounds`.

Releases that differ from the pinned ones are installed into an environment of their own under .venvs. It sees the
packages of the main environment too, so it holds only what differs, and pip decides what that is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LAWS = ("tests/laws", "tests/hooks/test_transformers_compat.py")
ONE_RUN = ("tests/test_imports.py", "tests/training/test_train.py", "tests/training/test_few_steps_on_ranks.py")
# The folders and files of tests that a release has to pass.
TESTS = {
    "transformers": (*LAWS, *ONE_RUN),
    "accelerate": ONE_RUN,
    "datasets": ONE_RUN,
    "deepspeed": ONE_RUN,
    "peft": ONE_RUN,
    "trl": (*ONE_RUN, "tests/training/test_clients.py"),
}
# Fails by design on a transformers outside the range of pyproject.toml.
ONLY_INSIDE_THE_RANGE = "tests/hooks/test_transformers_compat.py::test_installed_version_is_in_the_tested_range"
QUICK = "not slow and not drill and not gpu"
NOTHING_RAN = 5  # pytest's exit status

Releases = Mapping[str, str]  # library -> version


def main(arguments: Sequence[str]) -> int:
    bounds, releases, for_pytest = parse(arguments)
    if not bounds:
        return run_tests("-".join(f"{name}-{version}" for name, version in releases.items()), releases, for_pytest)
    pinned = read_pinned()
    for bound, wanted in (("oldest", read_oldest()), ("newest", find_newest(pinned))):
        changed = {name: version for name, version in wanted.items() if Version(version) != Version(pinned[name])}
        if not changed:
            print(f"versions: the {bound} releases are the pinned ones, on which all tests run")
        elif code := run_tests(bound, changed, for_pytest):
            return code
    return 0


def parse(arguments: Sequence[str]) -> tuple[bool, dict[str, str], list[str]]:
    """(--bounds was given, the releases by name, what pytest gets)."""
    parser = argparse.ArgumentParser(prog="bash launch/test.sh", allow_abbrev=False)
    parser.add_argument("--bounds", action="store_true", help="oldest and newest releases that pyproject.toml allows")
    for library in TESTS:
        parser.add_argument(f"--{library}", type=Version, metavar="VERSION")
    options, for_pytest = parser.parse_known_args(arguments)
    given = {library: getattr(options, library) for library in TESTS}
    releases = {library: str(version) for library, version in given.items() if version is not None}
    if options.bounds == bool(releases):
        parser.error("give either --bounds or releases by name, such as --transformers 5.25.0")
    return options.bounds, releases, for_pytest


def read_ranges() -> dict[str, SpecifierSet]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"])
    return {requirement.name: requirement.specifier for requirement in requirements if requirement.name in TESTS}


def read_oldest() -> dict[str, str]:
    return {
        library: next(part.version for part in allowed if part.operator == ">=")
        for library, allowed in read_ranges().items()
    }


def read_pinned() -> dict[str, str]:
    lines = (ROOT / "launch/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {library: pins[library] for library in TESTS}


def find_newest(pinned: Releases) -> dict[str, str]:
    """What pip finds inside the ranges; the pinned release where it finds none, as on a machine without a network."""
    found = {}
    for library, allowed in read_ranges().items():
        command = [sys.executable, "-m", "pip", "index", "versions", library]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found[library] = newest_inside(allowed, listed) or pinned[library]
    return found


def newest_inside(allowed: SpecifierSet, listed: str) -> str | None:
    """`listed` is what `pip index versions` prints."""
    line = re.search(r"^Available versions: (.+)$", listed, re.MULTILINE)
    inside = list(allowed.filter(map(Version, line[1].split(", ")))) if line else []
    return str(max(inside)) if inside else None


def run_tests(name: str, releases: Releases, for_pytest: Sequence[str]) -> int:
    """The exit status of pytest on these releases."""
    python = make_environment(ROOT / ".venvs" / name, releases)
    print(f"versions: testing {', '.join(map('=='.join, releases.items()))}", flush=True)
    if added := read_added(python, releases):
        print(f"versions: .venv does not meet their requirements, so pip added {', '.join(added)}", flush=True)
    selected = list(dict.fromkeys(path for library in releases for path in TESTS[library]))
    if not read_ranges()["transformers"].contains(releases.get("transformers", read_pinned()["transformers"])):
        selected += ["--deselect", ONLY_INSIDE_THE_RANGE]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Launches of DeepSpeed bring two ranks each, so they run one after the other.
    runs = [["-n", "2", "-m", f"{QUICK} and not deepspeed"], ["-m", f"{QUICK} and deepspeed"]]
    for run in runs:
        command = [str(python), "-m", "pytest", *run, *selected, *for_pytest]
        code = subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
        if code and not (code == NOTHING_RAN and for_pytest):
            print(f"versions: failed on {', '.join(map('=='.join, releases.items()))}; the environment is {python}")
            return code
    return 0


def make_environment(folder: Path, releases: Releases) -> Path:
    """The Python of an environment with these releases; made once, and again when the main one has changed."""
    python, stamp = folder / "bin/python", folder / "dart-train.stamp"
    main_packages = sorted({f"{package.name}=={package.version}" for package in metadata.distributions()})
    made_from = "\n".join([*main_packages, *map("==".join, releases.items())])
    if stamp.exists() and stamp.read_text() == made_from:
        return python
    print(f"versions: making {folder.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True).create(folder)
    own_packages(python).joinpath("main.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    # All libraries are requested, so that pip weighs the requirements of each; those already there stay as they are.
    requested = [f"{library}=={releases[library]}" if library in releases else library for library in TESTS]
    requested.append(f"torch=={metadata.version('torch')}")
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    # Without isolation: deepspeed is built from source and looks for torch then.
    command += ["--no-warn-conflicts", "--no-build-isolation", *requested]
    done = subprocess.run(command, env={**os.environ, "DS_BUILD_OPS": "0"}, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"versions: pip cannot install {', '.join(requested)} together; its reason is above")
    stamp.write_text(made_from)
    return python


def own_packages(python: Path) -> Path:
    return python.parents[1] / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def read_added(python: Path, releases: Releases) -> list[str]:
    """What is installed in the environment besides the releases it was made for."""
    own = metadata.distributions(path=[str(own_packages(python))])
    return sorted(f"{package.name} {package.version}" for package in own if package.name not in releases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
