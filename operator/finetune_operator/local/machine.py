"""What this computer has. torch is not imported here: it takes seconds and a gigabyte."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

from finetune_api.resolve import Machine

AMPERE = 8.0  # first generation of GPUs with bf16 arithmetic
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 AVX-512 and AMX, Arm


@cache
def this_machine() -> Machine:
    """Return the GPUs of this computer as the driver tells them, and whether bf16 is native."""
    versions = _gpu_versions()
    return Machine(
        gpus=len(versions),
        gpus_have_bf16=bool(versions) and min(versions) >= AMPERE,
        cpu_has_bf16=bool(CPU_FLAGS & _cpu_flags()),
    )


def _gpu_versions() -> list[float]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return [float(line) for line in found.stdout.split() if line.replace(".", "").isdigit()]


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(found.split())
