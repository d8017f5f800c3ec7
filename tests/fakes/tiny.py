"""Tiny random models with a tokenizer trained on the spot: real files, made in a second."""

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "What is the capital of France? Paris is the capital of France.",
    "How do I descale the machine? Hold both buttons for five seconds.",
    "A short answer is a good answer; a long one needs more tokens, 0123456789.",
    "user assistant system Below is an instruction. ### Response: USER: ASSISTANT:",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(*, special: list[str] | None = None, template: str | None = CHATML) -> Any:
    """Return a byte-level BPE tokenizer of about 400 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = special or SPECIAL
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=tokens[0], bos_token=tokens[0]
    )
    fast.chat_template = template
    fast.add_special_tokens({"additional_special_tokens": tokens})
    return fast


def tiny_model(folder: Path, *, template: str | None = CHATML, seed: int = 0) -> Path:
    """Save a two-layer Llama of 70 thousand weights with its tokenizer; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(template=template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Return rows of different lengths, all different."""
    return [
        {
            "instruction": f"Question {n}: what is {n} plus {n}?",
            "output": f"It is {2 * n}." + " Think of it." * (n % 7),
        }
        for n in range(count)
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
