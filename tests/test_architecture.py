"""The architecture, read from the imports: packages in layers, no circles, one meaning for each class name."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dart_train"

# Former module paths, each of which only imports the new one, until the next release. Nothing in the package uses them.
SHIMS = {"families", "processors"}
# From the bottom up. A package imports lower layers only, never another package of its own layer.
LAYERS = (
    ("common", "reduction"),
    ("kernels", "rewards", "vllm_plugin"),
    ("config",),
    ("models",),
    ("hooks",),
    ("checkpoints", "data", "profiling"),
    ("chat", "conformance", "visualization"),
    ("evaluation", "exporting", "training"),
    ("benchmarks", "lmms_eval", "planning", "serving"),
    ("cli",),
    ("__init__", "__main__", *sorted(SHIMS)),
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
# Libraries that only these packages or files may import.
ONLY_IN = {
    "deepspeed": {"common/deepspeed_compat.py", "training"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "peft": {"checkpoints", "exporting", "models/peft_compat.py", "training"},
    "triton": {"kernels"},
    "trl": {"training"},
    "vllm": {"vllm_plugin"},
    "wandb": {"common/trackers.py", "evaluation", "training"},
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name without `dart_train.` -> file; a package is named like its `__init__`."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return found


@cache
def imports_of(file: Path) -> tuple[tuple[str, str], ...]:
    """(absolute module, name) of every import in the file, also inside functions."""
    return tuple(_imports_of(file))


def _imports_of(file: Path) -> Iterator[tuple[str, str]]:
    package = ["dart_train", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)


def own_imports(file: Path) -> set[str]:
    """Modules of this package that the file imports, without the leading `dart_train.`."""
    found = set()
    for module, name in imports_of(file):
        if module != "dart_train" and not module.startswith("dart_train."):
            continue
        inner = module.removeprefix("dart_train").removeprefix(".")
        full = f"{inner}.{name}".strip(".")
        found.add(full if full in modules() else inner or "__init__")
    return found


def package_of(module: str) -> str:
    return module.split(".")[0]


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def test_every_package_has_a_layer() -> None:
    packages = {relative(file).split("/")[0].removesuffix(".py") for file in modules().values()}
    assert packages == LAYER_OF.keys(), "LAYERS lists other packages than there are"


def test_imports_only_go_down() -> None:
    wrong = {
        (relative(file), used)
        for file in modules().values()
        for used in own_imports(file)
        for mine, theirs in [(relative(file).split("/")[0].removesuffix(".py"), package_of(used))]
        if mine != theirs and LAYER_OF[theirs] >= LAYER_OF[mine]
    }
    assert not wrong, sorted(wrong)


def test_no_file_imports_itself_in_a_circle() -> None:
    names = {file: name for name, file in modules().items()}
    graph = {names[file]: own_imports(file) - {names[file]} for file in modules().values()}
    graph = {name: {used for used in uses if used in graph} for name, uses in graph.items()}
    circles = [path for path in strongly_connected(graph) if len(path) > 1]
    assert not circles, circles


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan's algorithm. A package's `__init__` that re-exports its files counts like any other file."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for used in graph[node]:
            if used not in index:
                visit(used)
                low[node] = min(low[node], low[used])
            elif used in stack:
                low[node] = min(low[node], index[used])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_reduction_is_pure_torch() -> None:
    libraries = {
        (relative(file), module.split(".")[0])
        for file in modules().values()
        if relative(file).startswith("reduction/")
        for module, _ in imports_of(file)
    }
    allowed = set(sys.stdlib_module_names) | {"dart_train", "numpy", "torch"}
    assert not {(file, library) for file, library in libraries if library not in allowed}


def test_vllm_plugin_needs_nothing_of_the_training_environment() -> None:
    """It runs next to another transformers: it imports `reduction`, and libraries that vLLM has too."""
    allowed = set(sys.stdlib_module_names) | {"huggingface_hub", "numpy", "safetensors", "torch", "vllm"}
    wrong = set()
    for name, file in modules().items():
        if name.startswith("vllm_plugin"):
            wrong |= {
                (relative(file), used)
                for used in own_imports(file)
                if package_of(used) not in ("reduction", "vllm_plugin")
            }
            libraries = {module.split(".")[0] for module, _ in imports_of(file)} - {"dart_train"}
            wrong |= {(relative(file), library) for library in libraries - allowed}
    assert not wrong, wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_few_files_import(library: str) -> None:
    importing = {
        relative(file)
        for file in modules().values()
        for module, _ in imports_of(file)
        if module.split(".")[0] == library
    }
    assert not {name for name in importing if not {name, name.split("/")[0]} & ONLY_IN[library]}


def test_class_names_have_one_meaning() -> None:
    places = defaultdict(list)
    for file in modules().values():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(relative(file))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice, twice


def test_no_package_shares_its_name_with_a_public_function() -> None:
    import dart_train

    assert not set(dart_train.__all__) & set(modules())


def our_files() -> list[Path]:
    top = [file for file in ROOT.iterdir() if file.is_file() and file.suffix in {".md", ".toml"}]
    folders = ("dart_train", "tests", "launch", "recipes", "data", ".ci")
    below = [file for name in folders for file in (ROOT / name).rglob("*") if file.is_file()]
    return [f for f in [*top, *below] if "__pycache__" not in f.parts and f.suffix != ".pyc"]


# Written with brackets, so that this file does not name them itself.
MACHINE_OR_REGISTRY = re.compile(
    r"/[w]ork/|/[r]oot/|/[h]ome/[a-z]|/[t]mp/[a-z]|py[p]i\.org|python[h]osted|[d]ownload\.pytorch"
)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for file in our_files():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # an image or another binary file
        found += [
            f"{file.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if MACHINE_OR_REGISTRY.search(line)
        ]
    assert not found, "\n".join(found)
