"""The Triton kernels compile for the GPUs they are meant for, on any machine."""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vapo_verl.attention.kernels import cuda

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOATS = {"scale": "fp32", "lse_ptr": "*fp32", "parts_ptr": "*fp32", "out_ptr": "*fp32"}
ALIGNED_STRIDES = ("stride_token", "stride_head", "stride_block", "stride_slot", "stride_kv_head")
QWEN2_5_VL_7B = {
    "GROUP": 7,
    "GROUP_PAD": 16,
    "BLOCK_SIZE": 16,
    "TILE": cuda.TILE,
    "HEADS": 28,
    "HEADS_PAD": 32,
    "SPLITS_PAD": cuda.MAX_SPLITS,
    "MAX_SPANS": 32,
    "SPANS_PAD": 32,
    "UPCAST": False,
}


def compiled(kernel, capability, with_lse, dtype, dim=128):
    """The kernel as the launcher would have it compiled for 16-byte aligned arguments."""
    constants = QWEN2_5_VL_7B | {"WITH_LSE": with_lse, "DIM": dim, "DIM_PAD": max(dim, 128)}
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[(i,)] = "constexpr", constants[name]
            continue
        pointer = f"*{dtype}" if name in ("query_ptr", "key_ptr") else "*i32"
        signature[name] = FLOATS.get(name, pointer if name.endswith("_ptr") else "i32")
        if name.endswith("_ptr") or name in ALIGNED_STRIDES:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    options = cuda.launch_options(cuda.TILE * constants["DIM"] * BYTES[dtype])
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def assert_no_spills(binary, folder):
    if not PTXAS.exists():
        pytest.skip("Triton came without ptxas")
    source = folder / "kernel.ptx"
    source.write_text(binary.asm["ptx"])
    (target,) = re.findall(r"^\.target (\S+)", binary.asm["ptx"], re.MULTILINE)
    command = [PTXAS, "-v", "--gpu-name", target, source, "-o", folder / "kernel.cubin"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    print(target, f"shared={binary.metadata.shared}", *re.findall(r"Used \d+ registers", log))
    (stored,) = re.findall(r"(\d+) bytes spill stores", log)
    assert int(stored) <= 16  # ptxas may trade a register or two for one more program


@pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "full"])
@pytest.mark.parametrize(
    ("dtype", "dim"), [("bf16", 128), ("bf16", 80), ("bf16", 256), ("fp16", 128), ("fp32", 128)]
)
@pytest.mark.parametrize("capability", [80, 90])
def test_walk_kernel(capability, dtype, dim, with_lse, tmp_path):
    binary = compiled(cuda.walk_kernel, capability, with_lse, dtype, dim)
    on_tensor_cores = {"bf16": r"mma\S*bf16", "fp16": r"mma\S*\.f16", "fp32": "mma"}[dtype]
    assert bool(re.search(on_tensor_cores, binary.asm["ptx"])) == (dtype != "fp32")  # that is exact
    assert "cp.async" in binary.asm["ptx"]  # the next tile loads while one is worked on
    assert_no_spills(binary, tmp_path)


@pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "full"])
@pytest.mark.parametrize("capability", [80, 90])
def test_mean_kernel(capability, with_lse, tmp_path):
    assert_no_spills(compiled(cuda.mean_kernel, capability, with_lse, "bf16"), tmp_path)
