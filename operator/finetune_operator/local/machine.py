"""What this computer has. torch is not imported here: it takes seconds and a gigabyte."""

import shutil
import subprocess

from finetune_api.resolve import Machine

AMPERE = 8.0  # first generation with bf16 arithmetic


def this_machine() -> Machine:
    """Return the GPUs of this computer as the driver tells them; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return Machine()
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    versions = [float(line) for line in found.stdout.split() if line.replace(".", "").isdigit()]
    return Machine(gpus=len(versions), has_bf16=bool(versions) and min(versions) >= AMPERE)
