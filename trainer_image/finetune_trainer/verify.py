"""Compares an exported model with base + adapter on prompts: logits and greedy tokens."""

import math
from pathlib import Path
from typing import Any

from finetune_api.modelexport import Verification
from finetune_trainer.adapters import merge
from finetune_trainer.errors import StepError
from finetune_trainer.exporters.layout import ExportParts
from finetune_trainer.models import load_model, load_tokenizer

# Largest allowed difference of a logit, by the precision the export is stored in. float32: rounding
# of the merge only; half precisions: rounding of the weights, over logits of magnitude 10 to 30.
TOLERANCES = {"torch.float32": 1e-3, "torch.bfloat16": 1.0, "torch.float16": 0.25}
LEAST_EQUAL_SHARE = {"torch.float32": 1.0, "torch.bfloat16": 0.7, "torch.float16": 0.8}
WHAT_TO_DO = "export with `huggingface.dtype: fp32`, and report it with the model's name"
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "How do I boil an egg?",
    "Explain what a computer is to a child.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a short tip for better sleep.",
)


class VerificationFailed(StepError):
    """The exported model does not compute what was trained."""


def verify(parts: ExportParts, folder: Path, *, prompts: int) -> Verification:
    """Return how close the exported model comes to base + adapter.

    Raises:
        VerificationFailed: not close enough, or its tokenizer makes other tokens.
    """
    import torch

    trained = load_model(parts.base, dtype="float32", attention="auto")
    trained = _with_adapters(trained, parts.adapters).eval()
    exported = load_model(folder, dtype="auto", attention="auto")
    stored = str(exported.dtype)
    exported = exported.to(torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    worst, equal, total = 0.0, 0, 0
    for question in _questions(prompts):
        ids = _prompt_ids(parts.tokenizer, question)
        if _prompt_ids(tokenizer, question) != ids:
            raise VerificationFailed(
                "the exported tokenizer makes other tokens than the trained one; the export was not"
                f" published; {WHAT_TO_DO}"
            )
        inputs = torch.tensor([ids])  # [1, T]
        with torch.no_grad():
            ours, theirs = trained(inputs).logits, exported(inputs).logits  # [1, T, V]
        difference = float((ours - theirs).abs().max())
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        total += len(ids)
    _require_close(worst, equal / total, stored)
    return Verification(max_logit_difference=f"{worst:.3g}", identical_tokens=f"{equal}/{total}")


def _require_close(worst: float, equal_share: float, stored: str) -> None:
    tolerance = TOLERANCES.get(stored, TOLERANCES["torch.float32"])
    if not worst <= tolerance or equal_share < LEAST_EQUAL_SHARE.get(stored, 1.0):
        raise VerificationFailed(
            f"the exported model computes otherwise than base + adapter: logits differ by {worst:.3g}"
            f" (at most {tolerance:g} for {stored}), {equal_share:.0%} of the greedy tokens are equal;"
            f" the export was not published; {WHAT_TO_DO}"
        )


def _with_adapters(model: Any, adapters: list[Path]) -> Any:
    """Apply the last adapter unmerged: what training computed. Earlier ones were merged then, too."""
    from peft import PeftModel

    from finetune_trainer.adapters import load

    if not adapters:
        return model
    model = merge(model, adapters[:-1])
    return load(model, adapters[-1], PeftModel)


def _questions(prompts: int) -> list[str]:
    return [
        f"{QUESTIONS[n % len(QUESTIONS)]}{' Again.' * (n // len(QUESTIONS))}"
        for n in range(prompts)
    ]


def _prompt_ids(tokenizer: Any, question: str) -> list[int]:
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(question)["input_ids"]
    return list(ids)
