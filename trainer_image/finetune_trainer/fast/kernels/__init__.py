"""What a layer computes beside its products. Each file: the plain torch reference, and when Triton does it.

Triton is imported at its first use only: on a computer without a GPU none of it is needed.
"""

import os

import torch


def by_triton(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is worked on by Triton: on a GPU, or interpreted for tests."""
    return tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
