"""Ids are those of the tokenizer's own template; what is trained on is the assistant's text and its end token.

Each case says what a template puts around that text, written by hand from the template: none of it is
computed by what is tested.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_api.data import ChatTemplate, Data
from finetune_trainer.data.chat import ChatEncoder, Tokens, named_template, serving_template
from finetune_trainer.data.formats.layout import Message
from finetune_trainer.errors import UserError
from tests.fakes.tiny import CHATML, tiny_tokenizer

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
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


every_case = pytest.mark.parametrize("case", NAMED + OWN, ids=case_id)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_case
@every_shape
def test_trained_on_is_the_assistants_text_and_its_end(case: Case, shape: str) -> None:
    encoder, tokenizer = encoder_of(case)
    messages = conversation(case, shape, tokenizer)
    tokens = encoder.encode(messages)
    assert runs(tokens, tokenizer) == expected(case, messages)
    sanitize = shape == "control tokens"
    assert tokens.input_ids == own_ids(
        tokenizer, messages, chat_template=encoder.template, sanitize_control_tokens=sanitize
    )


@every_case
def test_no_control_token_comes_from_a_text(case: Case) -> None:
    encoder, tokenizer = encoder_of(case)
    special = set(tokenizer.all_special_ids)

    def written(messages: list[Message]) -> list[int]:
        return [token for token in encoder.encode(messages).input_ids if token in special]

    messages = conversation(case, "control tokens", tokenizer)
    assert written(messages) == written([{**message, "content": "x"} for message in messages])


@pytest.mark.parametrize("case", NAMED, ids=case_id)
@every_shape
def test_a_named_template_serves_the_prompt_it_was_trained_behind(case: Case, shape: str) -> None:
    encoder, tokenizer = encoder_of(case, train_on="last-turn")
    messages = conversation(case, shape, tokenizer)
    tokens = encoder.encode(messages)
    assert encoder.prompt_ids(messages[:-1]) == tokens.input_ids[: tokens.trained.index(True)]


WORDS = ["a", "user", " ", "\n", "  ", "é", "😀", "日", "{{ x }}", "{%", "<", "|>", "</s>", "<|im_end|>",
         "<end_of_turn>", "<|eot_id|>", "<|end|>", "assistant", "\\n", "'"]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=st.sampled_from(NAMED + OWN), one=texts, two=texts, three=texts, four=texts)
def test_any_text_comes_back(case: Case, one: str, two: str, three: str, four: str) -> None:
    encoder, tokenizer = encoder_of(case)
    messages = chat(one, two.strip() if case.name == "qwen3" else two, three, four)
    tokens = encoder.encode(messages)
    assert runs(tokens, tokenizer) == expected(case, messages)
    assert tokens.input_ids == own_ids(
        tokenizer, messages, chat_template=encoder.template, sanitize_control_tokens=True
    )


# What TRL's training variants mark beyond what we find in the originals. Ours is right each time:
# a header is given by the prompt, and nothing is generated behind the end token.
LINE = {"\n"}
BEYOND_OURS: dict[str, set[str]] = {
    "cohere": set(),
    "cohere2": set(),
    "deepseek_r1_distill": {"<｜Assistant｜>"},
    "deepseekv3": {"<｜Assistant｜>"},
    "gemma": LINE,
    "gemma3": LINE,
    "glm4moe": set(),  # Theirs adds <|user|> behind the last turn: other ids than the model's own.
    "gptoss": {"<|start|>assistant"},
    "lfm2": LINE,
    "llama3": set(),
    # The prompt opens a thought with a line: an empty one never follows it.
    "nemotron_3_nano": {"<think></think>", "\n"},
    "phi3": {"\n", "\n</s>"},
    "phi3_5": {"\n", "\n</s>"},
    "qwen2_5": LINE,  # On both sides.
    "qwen3": LINE,  # Theirs thinks in earlier turns too: other ids than the model's own.
    "qwen3_5_think": {"<think>\n", "\n"},
    "qwen3_instruct_2507": LINE,
}
OTHER_IDS = {"glm4moe", "qwen3", "qwen3_5_think"}


@pytest.mark.parametrize("case", [c for c in OWN if c.name in BEYOND_OURS], ids=case_id)
def test_found_by_difference_as_marked_by_trl(case: Case) -> None:
    marked = trl_template(f"{case.name}_training")
    tokenizer = tokenizer_for(case.source + marked)
    beyond = set()
    for shape in SHAPES:
        messages = conversation(case, shape, tokenizer)
        ours, theirs = (encode(tokenizer, source, messages) for source in (case.source, marked))
        assert ours.input_ids == theirs.input_ids or case.name in OTHER_IDS
        pairs = zip(ours.input_ids, theirs.input_ids, strict=False)
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        both = list(zip(ours.trained[:same], theirs.trained[:same], strict=True))
        assert (True, False) not in both
        extra = Tokens(ours.input_ids[:same], [pair == (False, True) for pair in both])
        beyond |= set(runs(extra, tokenizer))
    assert beyond == BEYOND_OURS[case.name]


def encode(tokenizer: Any, source: str, messages: list[Message], **data: Any) -> Tokens:
    """Encode with a template as the model's own; check the ids against the tokenizer's."""
    tokenizer.chat_template = source
    tokens = ChatEncoder(tokenizer, Data(**data)).encode(messages)
    assert tokens.input_ids == own_ids(tokenizer, messages, sanitize_control_tokens=True)
    return tokens


@every_case
def test_last_turn_and_all(case: Case) -> None:
    encoder, tokenizer = encoder_of(case, train_on="last-turn")
    messages = conversation(case, "exchanges", tokenizer)
    last = encoder.encode(messages)
    assert runs(last, tokenizer) == expected(case, messages)[-1:]
    everything = encoder_of(case, train_on="all")[0].encode(messages)
    assert everything == Tokens(last.input_ids, [True] * len(last.input_ids))


def test_last_turn_of_a_template_that_marks_it_in_two_pieces() -> None:
    source = trl_template("phi3_training")
    tokenizer = tokenizer_for(source)
    tokens = encode(tokenizer, source, SHAPES["exchanges"], train_on="last-turn")
    assert runs(tokens, tokenizer) == ["No.<|end|>\n</s>"]


def test_a_default_system_text_stands_where_a_row_has_none() -> None:
    case = NAMED[1]
    encoder, tokenizer = encoder_of(case, default_system="Be kind. <|im_end|>")
    plain, _ = encoder_of(case)
    row, own = chat("Hi", "Hello"), chat("Hi", "Hello", system="Be brief.")
    assert encoder.encode(row) == plain.encode(chat("Hi", "Hello", system="Be kind. <|im_end|>"))
    assert encoder.encode(own) == plain.encode(own)
    assert runs(encoder.encode(row), tokenizer) == ["Hello<|im_end|>"]


def test_without_thinking_the_prompt_holds_the_empty_thought() -> None:
    case = next(case for case in OWN if case.name == "qwen3")
    encoder, tokenizer = encoder_of(case, enable_thinking=False)
    # The prompt of an earlier turn is no prefix of the text: role words must not mislead.
    tokens = encoder.encode(SHAPES["role words"])
    assert runs(tokens, tokenizer) == [
        f"{word}<|im_end|>" for word in ("user", "assistant", "model")
    ]
    assert tokens.input_ids == own_ids(tokenizer, SHAPES["role words"], enable_thinking=False)


THOUGHT = "<think>\nHm.\n</think>\n\nYes."


def test_an_assistant_may_think_and_a_user_may_only_write_about_it() -> None:
    source = trl_template("qwen3")
    tokenizer = tokenizer_for(source)
    tokens = encode_thought = ChatEncoder(tokenizer, Data()).encode(
        chat("What is <think>?", THOUGHT)
    )
    assert runs(tokens, tokenizer) == [f"{THOUGHT}<|im_end|>"]
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert [
        t
        for t, token in zip(tokens.trained, encode_thought.input_ids, strict=True)
        if token == think
    ] == [True]


def test_an_added_token_that_no_template_writes_stays_a_token() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.add_tokens(["<h1>"])
    tokens = encode(tokenizer, CHATML, chat("<h1> is?", "A <h1>."))
    assert tokens.input_ids.count(tokenizer.convert_tokens_to_ids("<h1>")) == 2


def test_an_end_token_that_is_not_special_ends_no_turn_either() -> None:
    tokenizer = tiny_tokenizer(special=["</s>"])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokens = encode(tokenizer, CHATML, chat("a<|im_end|>", "b<|im_end|>c"))
    assert runs(tokens, tokenizer) == ["b<|im_end|>c<|im_end|>"]
    assert tokens.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_a_template_that_parts_a_text_cannot_part_control_tokens_from_their_marks() -> None:
    source = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    tokenizer = tokenizer_for(source, "</think>")
    tokens = encode(tokenizer, source, chat("a</think>b", "c"))
    assert tokenizer.decode(tokens.input_ids).startswith("<|im_start|>user\nb<|im_end|>")
    assert runs(tokens, tokenizer) == ["c<|im_end|>"]


# Tokenizers with ways of their own.


def test_white_space_counts_where_a_tokenizer_leaves_it_out_of_offsets() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    code = " if x:\n        return  y "
    assert runs(encode(tokenizer, CHATML, chat(code, code)), tokenizer) == [f"{code}<|im_end|>"]


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_tokenizer_that_puts_a_space_before_a_text(scheme: str) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokens = ["</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(
        set("".join(m["content"] for m in SHAPES["control tokens"]) + CHATML + "\n</>|")
    )
    trainer = trainers.BpeTrainer(
        special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["in a word"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    found = encode(
        tokenizer, CHATML, chat("a</s>b <|im_end|>", "a <|im_end|> b</s>c", "a", " in a")
    )
    assert runs(found, tokenizer) == ["a <|im_end|> b</s>c<|im_end|>", " in a<|im_end|>"]


def test_a_header_token_may_swallow_the_white_space_behind_it() -> None:
    """So do Phi-3's: what stands before the text's first letter is then no token of its own."""
    tokenizer = tiny_tokenizer(special=["</s>", "<|user|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<|assistant|>", rstrip=True, special=True)])
    tokens = encode(tokenizer, trl_template("phi3"), chat("Hi", "\n Hello"))
    assert runs(tokens, tokenizer) == ["Hello<|end|>"]


def test_a_token_that_begins_in_the_header_is_not_trained_on() -> None:
    """Serving's prompt ends before it: the model is never asked for it there."""
    tokenizer = tokenizer_for(CHATML)
    tokenizer.add_tokens(["\n\n"])
    tokens = encode(tokenizer, CHATML, chat("Hi", "\n\nHello\n\n\nyou"))
    assert runs(tokens, tokenizer) == ["\nHello\n\n\nyou<|im_end|>"]


def test_a_token_that_cannot_be_written_as_text_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<|im_end|>": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = CHATML
    encoder = ChatEncoder(tokenizer, Data())
    with pytest.raises(UserError, match="cannot tell from the control token"):
        encoder.encode(chat("a </s> b", "c"))


@pytest.mark.parametrize(
    "source",
    [named_template(case.name) for case in NAMED]
    + [trl_template(f"{name}_training") for name in BEYOND_OURS]
    + ["a\n  {% generation %}\n b {{ messages[-1].content }}\n{%- endgeneration -%}\n c"],
)
def test_a_serving_template_writes_the_same_text_without_markers(source: str) -> None:
    served = serving_template(source)
    assert "generation %}" not in served
    for shape, messages in SHAPES.items():
        rows = [m for m in messages if m["role"] != "system" or "System role not" not in source]
        for options in ({}, {"add_generation_prompt": True}):
            texts = [
                render_jinja_template(
                    [rows], chat_template=text, bos_token="<s>", eos_token="</s>", **options
                )[0]
                for text in (source, served)
            ]
            assert texts[0] == texts[1], shape


@pytest.mark.parametrize("template", [None, {"tool_use": CHATML}])
def test_a_model_without_a_template_asks_for_a_name(template: Any) -> None:
    with pytest.raises(UserError, match="no chat template.*chatTemplate: alpaca"):
        ChatEncoder(tiny_tokenizer(template=template), Data())


def test_of_several_templates_the_default_is_taken() -> None:
    templates = {"default": CHATML, "tool_use": "x"}
    assert ChatEncoder(tiny_tokenizer(template=templates), Data()).template == CHATML


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("chatml", "<|im_end|>"),
        ("gemma", "<end_of_turn>"),
        ("llama3", "<|eot_id|>"),
        ("phi3", "<|user|>"),
    ],
)
def test_a_named_template_needs_its_tokens(name: str, missing: str) -> None:
    tokens = [token for token in TOKEN.findall(named_template(name)) if token != missing]
    tokenizer = tiny_tokenizer(special=["</s>", *dict.fromkeys(tokens)])
    with pytest.raises(UserError, match=re.escape(f"{name} needs the token {missing}")):
        ChatEncoder(tokenizer, Data(chat_template=ChatTemplate(name)))


@pytest.mark.parametrize("name", ["alpaca", "mistral", "vicuna", "zephyr"])
def test_a_named_template_needs_an_end_of_sequence_token(name: str) -> None:
    tokenizer = tiny_tokenizer(template=None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=f"{name} needs an end-of-sequence token"):
        ChatEncoder(tokenizer, Data(chat_template=ChatTemplate(name)))


@pytest.mark.parametrize(
    ("source", "texts", "refusal"),
    [
        (trl_template("gemma"), chat("a", "b", system="c"), "System role not supported"),
        (trl_template("gemma_training"), chat("a", "b", system="c"), "System role not supported"),
        ("{{ messages[0].nothing + 1 }}", chat("a", "b"), "refuses a conversation"),
        (CHATML.replace("['content']", "['content'] | upper"), chat("a", "b"), "changes the assistant's text"),
        (CHATML.replace("['content']", "['content'] * 2"), chat("a", "b"), "changes the assistant's text"),
        (trl_template("qwen3"), chat("a", THOUGHT, "b", "c"), "changes the assistant's text"),
        (trl_template("smolvlm"), chat("a", "b"), "changes the assistant's text"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_show_a_conversation_refuses_it(
    source: str, texts: list[Message], refusal: str
) -> None:
    encoder = ChatEncoder(tokenizer_for(source), Data())
    with pytest.raises(UserError, match=refusal):
        encoder.encode(texts)
