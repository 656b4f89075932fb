"""The Triton kernels compile for an H100 or H200; that needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dart_train.kernels import selection

def compile(kernel, pointers, integers, constants, floats=""):
    names = {name: "i32" for name in integers.split()} | {name: "fp32" for name in floats.split()}
    signature = {**pointers, **names, **{name: "constexpr" for name in constants}}
    assert signature.keys() == set(kernel.arg_names)
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]

groups = {"rows": "*i64", "slots": "*i64"}
for dtype in ("*bf16", "*fp32"):
    compile(selection._l1_norms, {"heads": dtype, "norms": "*fp32"},
            "stride_b stride_h stride_l stride_d length n_heads width", {"BLOCK": 1024})
    compile(selection._similarities,
            {"states": dtype, "scale": dtype, **groups, "pivots": "*i64", "similarity": "*fp32"},
            "stride_b stride_l stride_d n width",
            {"P": 8, "SCALED": True, "BLOCK_P": 16, "BLOCK_N": 32, "BLOCK_D": 64})
flags = {name: "*u8" for name in ("valid", "keep")}
compile(selection._pivots, {"norms": "*fp32", **groups, **flags, "prompt": "*u8", "plan": "*i64", "pivots": "*i64",
        "is_pivot": "*u8"}, "length n", {"IMAGE": 4, "TEXT": 4, "BLOCK_N": 1024, "BLOCK_L": 1024}, "sign")
compile(selection._take_least_similar, {"similarity": "*fp32", **flags, "plan": "*i64"}, "n", {"P": 8, "BLOCK": 1024})
print("compiled")
"""


def test_triton_kernels_compile(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    run = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert run.stdout.endswith("compiled\n"), run.stderr
