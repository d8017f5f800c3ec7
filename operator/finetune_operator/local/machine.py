"""What this computer has. torch is not imported here: it takes seconds and a gigabyte."""

import shutil
import subprocess
from functools import cache

from finetune_api.resolve import Machine

AMPERE = 8.0  # first generation of GPUs with bf16 arithmetic


@cache
def this_machine() -> Machine:
    """Return the GPUs of this computer as the driver tells them; `prepare` looks at the processor."""
    versions = _gpu_versions()
    return Machine(
        gpus=len(versions),
        gpus_have_bf16=bool(versions) and min(versions) >= AMPERE,
    )


def _gpu_versions() -> list[float]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return [float(line) for line in found.stdout.split() if line.replace(".", "").isdigit()]
