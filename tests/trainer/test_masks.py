"""Ids are those of the tokenizer's own template; trained on is the assistant's text and its end token."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.chat import Tokens
from finetune_trainer.data.formats.layout import Message
from tests.trainer.conversations import (
    MARKED_BY_TRL,
    NAMED,
    OWN,
    SHAPES,
    Case,
    case_id,
    chat,
    conversation,
    encode,
    encoder_of,
    expected,
    own_ids,
    runs,
    tokenizer_for,
    trl_template,
)

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


@pytest.mark.parametrize("case", MARKED_BY_TRL, ids=case_id)
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
