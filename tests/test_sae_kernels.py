"""The Triton kernels run in Triton's interpreter, compile for a GPU, and are refused where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saelab.errors import UserError
from saelab.sae import SAEConfig, Trainer, sparse

pytest.importorskip("triton", reason="the package triton is not installed")

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from saelab.sae import kernels, maxima

tile = {name: getattr(maxima, name) for name in ("MEMBERS", "KEPT", "ROWS", "GROUPS", "UNITS", "STRIP")}
kinds = ["*bf16", "*bf16", "*fp32", "*fp32", "i32", "i32", "i32", *["constexpr"] * 6]
function = maxima._largest_of_groups
signature = dict(zip(function.arg_names, kinds, strict=True))
even = {(i,): [["tt.divisibility", 16]] for i in range(7)}
options = {"num_warps": maxima.WARPS, "num_stages": maxima.STAGES}
for capability, shared, attrs in ((90, 227, even), (90, 227, {}), (86, 99, even)):
    source = ASTSource(function, signature, constexprs=tile, attrs=attrs)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.metadata.shared <= shared << 10, "KiB of a multiprocessor of such a card"
    assert ("wgmma" in made.asm["ptx"]) == (capability == 90) and "mma" in made.asm["ptx"]
    print(len(made.asm["cubin"]))
for name in ("_weighted_sums", "_sampled_products"):
    function = getattr(kernels, name)
    for index, storage in (("*i32", "*fp32"), ("*i64", "*bf16")):
        kinds = [index, index, storage, storage, "*fp32", "i32", "constexpr", "constexpr"]
        signature = dict(zip(function.arg_names, kinds, strict=True))
        source = ASTSource(function, signature, constexprs={"WIDTH": 256, "PAIRS": kernels.PAIRS})
        print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.mark.parametrize("file", ["kernels_interpreted.py", "maxima_interpreted.py"])
def test_in_the_interpreter(file):
    """In a process of its own: Triton asks for the interpreter once, when it is imported, and torch may import it."""
    done = python(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        Path(__file__).with_name(file),
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_the_kernels_compile_for_a_hopper_gpu(tmp_path):
    """The interpreter accepts what the compiler refuses; compiling needs no GPU."""
    done = python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 7 and all(int(size) > 1000 for size in done.stdout.split())


def test_without_a_gpu_the_switch_is_refused():
    with pytest.raises(UserError, match="CUDA"):
        sparse.products("triton", torch.device("cpu"))
    x = torch.randn(4, 8)
    with pytest.raises(UserError, match="CUDA"):
        Trainer(SAEConfig(8, 256, k=1, screen="bfloat16", kernels="triton")).step(x)


def python(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **env}, capture_output=True, text=True)
