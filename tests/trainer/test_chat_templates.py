"""Chat templates and tokenizers with ways of their own, what a server is given, and refusals."""

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_api.data import ChatTemplate, Data
from finetune_trainer.data.chat import ChatEncoder, named_template, serving_template
from finetune_trainer.data.formats.layout import Message
from finetune_trainer.errors import UserError
from tests.fakes.tiny import CHATML, tiny_tokenizer
from tests.trainer.conversations import (
    MARKED_BY_TRL,
    NAMED,
    SHAPES,
    TOKEN,
    Case,
    case_id,
    chat,
    encode,
    encoder_of,
    runs,
    tokenizer_for,
    trl_template,
)

THOUGHT = "<think>\nHm.\n</think>\n\nYes."


def test_an_assistant_may_think_and_a_user_may_only_write_about_it() -> None:
    source = trl_template("qwen3")
    tokenizer = tokenizer_for(source)
    tokens = ChatEncoder(tokenizer, Data()).encode(chat("What is <think>?", THOUGHT))
    assert runs(tokens, tokenizer) == [f"{THOUGHT}<|im_end|>"]
    thought = tokenizer("<think>\n")["input_ids"]
    assert [id_ for id_ in tokens.input_ids if id_ in thought[:1]] == thought[:1]
    assert tokens.trained[tokens.input_ids.index(thought[0])]


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


def test_marks_of_ours_in_a_text_mean_nothing() -> None:
    tokenizer = tokenizer_for(CHATML)
    marked = "a\U000f0000<|im_\U000f0002end|>\U000f0001\U000f0002b"
    plain = encode(tokenizer, CHATML, chat("a<|im_end|>b", "a<|im_end|>b"))
    assert ChatEncoder(tokenizer, Data()).encode(chat(marked, marked)) == plain


def test_a_prompt_that_shows_the_last_question_alone_moves_no_turn() -> None:
    source = CHATML.replace(
        "in messages", "in (messages[-1:] if add_generation_prompt else messages)"
    )
    tokenizer = tokenizer_for(source)
    tokens = encode(tokenizer, source, SHAPES["echo"])
    assert runs(tokens, tokenizer) == ["good<|im_end|>", "good<|im_end|>"]


# Tokenizers with ways of their own.


@pytest.mark.parametrize("header", ["ASSISTANT: ", "ASSISTANT:\n"])
def test_white_space_counts_where_a_tokenizer_leaves_it_out_of_offsets(header: str) -> None:
    source = f"{{% for m in messages %}}{{{{ m.content }}}}{{{{ '{header}' if loop.first else eos_token }}}}{{% endfor %}}"
    tokenizer = tokenizer_for(source)
    code = "a = x:\n        return  y "
    whole = encode(tokenizer, source, chat(code, code))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert encode(tokenizer, source, chat(code, code)) == whole
    # A first token that begins in the header is none of the text's.
    kept = code if header.endswith("\n") else code.removeprefix("a")
    assert runs(whole, tokenizer) == [f"{kept}</s>"]


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
    found = encode(tokenizer, CHATML, chat("a</s>b <|im_end|>", "a <|im_end|> b</s>c", "a", "in a"))
    assert runs(found, tokenizer) == ["a <|im_end|> b</s>c<|im_end|>", "in a<|im_end|>"]


def test_a_header_token_may_swallow_the_white_space_behind_it() -> None:
    """So do Phi-3's: what stands before the text's first letter is then no token of its own."""
    tokenizer = tiny_tokenizer(special=["</s>", "<|user|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<|assistant|>", rstrip=True, special=True)])
    tokens = encode(tokenizer, trl_template("phi3"), chat("Hi", "\n Hello"))
    assert runs(tokens, tokenizer) == ["Hello<|end|>"]


def test_a_token_that_begins_in_the_header_is_not_trained_on() -> None:
    """Serving's prompt ends before it: the model is never asked for it there."""
    tokenizer = tokenizer_for(CHATML)
    tokenizer.add_tokens(["\n", "\n\n"])
    tokens = encode(tokenizer, CHATML, chat("Hi\nyou", "\n\nHello\n\n\nyou"))
    assert runs(tokens, tokenizer) == ["\nHello\n\n\nyou<|im_end|>"]


def test_a_token_that_cannot_be_written_as_text_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<|im_end|>": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = CHATML
    encoder = ChatEncoder(tokenizer, Data())
    with pytest.raises(UserError, match="cannot tell from the control token"):
        encoder.encode(chat("a </s> b", "c"))


# Of the conversation: system S, user U, assistant A, user V, assistant B.
RENDERED = {
    "alpaca": "<s>S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\nB</s>\n\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
    "gemma": "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST] B</s>",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\nB<|end|>\n",
    "vicuna": "<s>S USER: U ASSISTANT: A</s>USER: V ASSISTANT: B</s>",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\nB</s>\n",
}


@pytest.mark.parametrize("case", NAMED, ids=case_id)
def test_a_named_template_writes_what_its_models_know(case: Case) -> None:
    encoder, tokenizer = encoder_of(case)
    tokens = encoder.encode(chat("U", "A", "V", "B", system="S"))
    assert tokenizer.decode(tokens.input_ids) == RENDERED[case.name]


@pytest.mark.parametrize(
    "source",
    [named_template(case.name) for case in NAMED]
    + [trl_template(f"{case.name}_training") for case in MARKED_BY_TRL]
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
    templates: Any = {"default": CHATML, "tool_use": "x"}
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
        (CHATML + "{{ '!' if messages[-1]['content'].endswith('b') }}", chat("a", "b"), "changes the assistant's text"),
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
