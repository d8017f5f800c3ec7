"""Conversations of twelve shapes, and what each chat template makes of an assistant's turn.

What a template puts around a text is written by hand from the template: none of it is computed by
what is tested.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from finetune_api.data import ChatTemplate, Data
from finetune_trainer.data.chat import ChatEncoder, Tokens, named_template
from finetune_trainer.data.formats.layout import Message
from tests.fakes.tiny import CHATML, tiny_tokenizer

TRL_TEMPLATES = Path(str(distribution("trl").locate_file("trl/chat_templates")))
TOKEN = re.compile(r"<[|｜][^<>|｜\s']+[|｜]>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>")
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
R1_END = "<｜end▁of▁sentence｜>"


def as_it_is(text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class Case:
    """What a template makes of an assistant's turn: `before` + `kept(text)` + `end`."""

    name: str
    end: str
    before: str = ""
    kept: Callable[[str], str] = as_it_is
    last_end: str | None = None
    last_before: str | None = None
    system: bool = True
    own: bool = True

    @property
    def source(self) -> str:
        if self.name == "tiny":
            return CHATML
        return trl_template(self.name) if self.own else named_template(self.name)

    def turn(self, text: str, *, last: bool) -> str:
        before = self.last_before if last and self.last_before is not None else self.before
        end = self.last_end if last and self.last_end is not None else self.end
        return before + self.kept(text) + end


def trl_template(name: str) -> str:
    return (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


NAMED = [
    Case("alpaca", "</s>", own=False),
    Case("chatml", "<|im_end|>", own=False),
    Case("gemma", "<end_of_turn>", kept=str.strip, own=False),
    Case("llama3", "<|eot_id|>", kept=str.strip, own=False),
    Case("mistral", "</s>", before=" ", kept=str.strip, own=False),
    Case("phi3", "<|end|>", own=False),
    Case("vicuna", "</s>", before=" ", own=False),
    Case("zephyr", "</s>", own=False),
]
OWN = [
    Case("tiny", "<|im_end|>"),
    Case("cohere", "<|END_OF_TURN_TOKEN|>", kept=str.strip),
    Case("cohere2", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    Case("deepseek_r1_distill", R1_END),
    Case("deepseekv3", R1_END),
    Case("gemma", "<end_of_turn>", kept=str.strip, system=False),
    Case("gemma3", "<end_of_turn>", kept=str.strip),
    # The next speaker's token ends a turn of GLM's; behind the last turn its template puts nothing.
    Case("glm4moe", "<|user|>", "\n<think></think>\n", kept=str.strip, last_end=""),
    Case("gptoss", "<|end|>", "<|channel|>final<|message|>", last_end="<|return|>"),
    Case("lfm2", "<|im_end|>"),
    Case("lfm2_2_5", "<|im_end|>\n"),  # With markers of its own.
    Case("llama3", "<|eot_id|>", kept=str.strip),
    Case("llama3_1", "<|eot_id|>", kept=str.strip),
    Case("llama3_2", "<|eot_id|>", kept=str.strip),
    Case("nemotron_3_nano", "<|im_end|>", kept=str.rstrip),
    Case("phi3", "<|end|>"),
    Case("phi3_5", "<|end|>"),
    Case("qwen2_5", "<|im_end|>"),
    Case("qwen3", "<|im_end|>", kept=lambda s: s.lstrip("\n"), last_before=EMPTY_THOUGHT),
    Case("qwen3_5_think", "<|im_end|>", kept=str.strip, last_before=EMPTY_THOUGHT[len("<think>\n") :]),
    Case("qwen3_instruct_2507", "<|im_end|>"),
]  # fmt: skip


def chat(*texts: str, system: str | None = None) -> list[Message]:
    head = [{"role": "system", "content": system}] if system else []
    roles = itertools.cycle(["user", "assistant"])
    return head + [
        {"role": role, "content": text} for role, text in zip(roles, texts, strict=False)
    ]


MARKED_BY_TRL = [c for c in OWN if (TRL_TEMPLATES / f"{c.name}_training.jinja").is_file()]

CONTROL = "CONTROL"  # Stands for every special token of a case's tokenizer.
CODE = "```jinja\n{% for m in messages %}\n    {{ m['content'] }}\n{% endfor %}\n```\n{a: {b}}"
SHAPES = {
    "single": chat("What is the capital?", "Paris is the capital of France."),
    "system": chat("Why?", "Because.", system="Answer in one word."),
    "exchanges": chat("One?", "A long one.", "Two?", "A short one.", "Three?", "No."),
    "echo": chat("good", "good", "good", "good"),
    "seen before": chat("Say a token.", "a token", "model, a token", "model", system="model: a token"),
    "unicode": chat("Grüße 😀?", "日本語 👩‍👩‍👧 é", "नमस्ते", "𝔘 ok 🇫🇷"),
    "outer white space": chat("  Hi \n", "\n  two lines\n\n  more  \n"),
    "long": chat("How long? " * 400, "Hold both buttons. " * 400, "More.", "A token. " * 400),
    "role words": chat("assistant", "user", "user", "assistant", "system", "model"),
    "control tokens": chat(f"a {CONTROL} b", f"{CONTROL}{CONTROL} c", CONTROL, CONTROL, system=CONTROL),
    "code": chat(CODE, CODE, "{{ messages }}", "{{ bos_token }}"),
    "one character": chat("a", "s", "\\", "<", "?", ">"),
}  # fmt: skip


def tokenizer_for(source: str, *extra: str) -> Any:
    """Return a new tokenizer with the tokens a template needs; the thought's are not special, as in Qwen's."""
    found = dict.fromkeys(["</s>", "<s>", *extra, *TOKEN.findall(source)])
    tokenizer = tiny_tokenizer(special=list(found), template=source)
    tokenizer.bos_token = "<s>"
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


@lru_cache
def encoder_of(case: Case, **data: Any) -> tuple[ChatEncoder, Any]:
    tokenizer = tokenizer_for(case.source)
    template = ChatTemplate.AUTO if case.own else ChatTemplate(case.name)
    return ChatEncoder(tokenizer, Data(chat_template=template, **data)), tokenizer


def conversation(case: Case, shape: str, tokenizer: Any) -> list[Message]:
    specials = "".join(tokenizer.all_special_tokens)
    return [
        {**message, "content": message["content"].replace(CONTROL, specials)}
        for message in SHAPES[shape]
        if case.system or message["role"] != "system"
    ]


def own_ids(tokenizer: Any, messages: list[Message], **options: Any) -> list[int]:
    options = {"tokenize": True, "return_dict": False, **options}
    ids: list[int] = tokenizer.apply_chat_template(messages, **options)
    return ids


def runs(tokens: Tokens, tokenizer: Any) -> list[str]:
    """Decode each unbroken run of trained tokens."""
    groups = itertools.groupby(
        zip(tokens.trained, tokens.input_ids, strict=True), lambda pair: pair[0]
    )
    return [tokenizer.decode([token for _, token in group]) for trained, group in groups if trained]


def expected(case: Case, messages: list[Message]) -> list[str]:
    texts = [m["content"] for m in messages if m["role"] == "assistant"]
    return [case.turn(text, last=n == len(texts)) for n, text in enumerate(texts, start=1)]


def case_id(case: Case) -> str:
    return f"{'own' if case.own else 'named'}-{case.name}"


def encode(tokenizer: Any, source: str, messages: list[Message], **data: Any) -> Tokens:
    """Encode with a template as the model's own; check the ids against the tokenizer's."""
    tokenizer.chat_template = source
    tokens = ChatEncoder(tokenizer, Data(**data)).encode(messages)
    assert tokens.input_ids == own_ids(tokenizer, messages, sanitize_control_tokens=True)
    return tokens
