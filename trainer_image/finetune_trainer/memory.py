"""How much memory a run is expected to need. Pure; an estimate, told as one."""

from finetune_api.adapters import Method

GIB = 1 << 30
ADAM_BYTES = 8  # two float32 moments (arXiv:1412.6980)
ACTIVATION_BYTES_PER_TOKEN_AND_HIDDEN = 34  # arXiv:2205.05198, section 4.1, without dropout masks


def lora_parameters(linear_shapes: list[tuple[int, int]], rank: int) -> int:
    """Return the number of weights of adapters on linear layers of (inputs, outputs)."""
    return sum(rank * (inputs + outputs) for inputs, outputs in linear_shapes)


def memory_bytes(
    *, parameters: int, trainable: int, method: Method, half: bool, activation_tokens: int, width: int
) -> int:  # fmt: skip
    """Return the expected peak of one process.

    `activation_tokens` is tokens x layers in flight; `width` the hidden size.
    """
    weight_bytes = 2 if half and method is Method.LORA else 4
    fixed = parameters * weight_bytes + trainable * (4 + 4 + ADAM_BYTES)
    activations = activation_tokens * width * ACTIVATION_BYTES_PER_TOKEN_AND_HIDDEN
    return fixed + (activations if half else 2 * activations)


def shown(count: float) -> str:
    """Return bytes as gibibytes, e.g. `1.3Gi`."""
    return f"{count / GIB:.1f}Gi"
