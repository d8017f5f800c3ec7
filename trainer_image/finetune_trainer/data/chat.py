"""A conversation to token ids and a mask of what is trained on.

The ids are those of the tokenizer's own chat template: what serving will see. The mask comes from
`{% generation %}` markers; a template without them is rendered turn by turn, and where a turn of the
assistant begins and ends follows from the difference.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_api.data import Data, TrainOn
from finetune_trainer.data.formats.layout import Message
from finetune_trainer.errors import UserError

GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>")
# Private-use characters around text that must not become a control token; never in real text.
OPEN, CLOSE = "\ue000", "\ue001"
Span = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """One row, tokenised. Shapes: [T] each, T tokens."""

    input_ids: list[int]
    trained: list[bool]


@lru_cache
def named_template(name: str) -> str:
    """Return the source of a named chat template, with generation markers."""
    folder = resources.files("finetune_trainer.data") / "templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def serving_template(source: str) -> str:
    """Return a template without generation markers, which not every server knows."""
    return GENERATION.sub("", source)


class ChatEncoder:
    """Encodes conversations with one tokenizer, template and choice of trained tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Choose the template.

        Raises:
            UserError: the model has none, or its tokenizer lacks a token of the named one.
        """
        self._tokenizer = tokenizer
        self._data = data
        self.template = _template(tokenizer, data.chat_template)
        self._has_markers = GENERATION.search(self.template) is not None
        self._kwargs: dict[str, Any] = dict(tokenizer.special_tokens_map)
        if data.enable_thinking is not None:
            self._kwargs["enable_thinking"] = data.enable_thinking
        added = tokenizer.added_tokens_decoder.values()
        # An assistant may write added tokens that are not special, such as <think>; nobody may end
        # a turn from within a text.
        self._special = _pattern([token.content for token in added if token.special])
        self._control = _pattern([token.content for token in added])

    def encode(self, messages: list[Message]) -> Tokens:
        """Return a conversation's token ids and which of them are trained on.

        Raises:
            UserError: the template refuses the conversation, or hides where a turn is.
        """
        messages = self._guarded(messages)
        text, spans = self._render(messages)
        if self._data.train_on is TrainOn.LAST_TURN:
            spans = spans[-1:]
        ids, offsets = self._tokenize(text)
        if self._data.train_on is TrainOn.ALL:
            return Tokens(ids, [True] * len(ids))
        return Tokens(ids, _mask(offsets, spans))

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Return the ids of a conversation that the assistant is to continue."""
        return self._tokenize(self._plain(self._guarded(messages), prompt=True))[0]

    def _guarded(self, messages: list[Message]) -> list[Message]:
        """Add the default system text; mark control tokens inside texts as what they are: text."""
        if self._data.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._data.default_system}, *messages]
        return [{**message, "content": self._neutralised(message)} for message in messages]

    def _neutralised(self, message: Message) -> str:
        content = message["content"].replace(OPEN, "").replace(CLOSE, "")
        control = self._special if message["role"] == "assistant" else self._control
        return control.sub(rf"{OPEN}\g<0>{CLOSE}", content) if control.pattern else content

    def _plain(self, messages: list[Message], *, prompt: bool = False) -> str:
        try:
            rendered, _ = render_jinja_template(
                [messages],
                chat_template=self.template,
                add_generation_prompt=prompt,
                **self._kwargs,
            )
        except Exception as error:
            # Templates raise jinja2 errors, TypeErrors, anything: all of them refuse the row.
            raise UserError(
                f"the chat template refuses a conversation: {error}; change the rows, or set `data.chatTemplate`"
            ) from error
        return str(rendered[0])

    def _render(self, messages: list[Message]) -> tuple[str, list[Span]]:
        if not self._has_markers:
            text = self._plain(messages)
            return text, _spans_by_difference(messages, text, self._plain, self._ends(text))
        rendered, spans = render_jinja_template(
            [messages],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self._kwargs,
        )
        return str(rendered[0]), [(int(start), int(end)) for start, end in spans[0]]

    def _ends(self, text: str) -> Callable[[int], int]:
        """Return a function: the end of the end-of-turn token that starts at a position, if any."""
        tokens = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)

        def end_at(position: int) -> int:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            for token in tokens:
                if not token.isspace() and text.startswith(token, start):
                    return start + len(token)
            return position

        return end_at

    def _tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """Return ids and their character spans in `text`."""
        if OPEN not in text:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return encoded["input_ids"], encoded["offset_mapping"]
        ids: list[int] = []
        offsets: list[Span] = []
        position = 0
        for index, piece in enumerate(re.split(f"[{OPEN}{CLOSE}]", text)):
            # Odd pieces stood between the marks: their control tokens are only text.
            encoded = self._tokenizer(
                piece,
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=index % 2 == 1,
            )
            ids += encoded["input_ids"]
            offsets += [(position + a, position + b) for a, b in encoded["offset_mapping"]]
            position += len(piece) + 1
        return ids, offsets


def _template(tokenizer: PreTrainedTokenizerBase, choice: str) -> str:
    if choice == "auto":
        if not isinstance(tokenizer.chat_template, str):
            raise UserError(
                "`spec.data.chatTemplate` is auto, but the model has no chat template (it is a base"
                " model); name one, e.g. `chatTemplate: alpaca`"
            )
        return tokenizer.chat_template
    source = named_template(choice)
    vocabulary = tokenizer.get_vocab()
    needed = set(CONTROL_TOKEN.findall(source)) if choice != "zephyr" else set()
    if missing := sorted(needed - set(vocabulary)):
        raise UserError(
            f"`spec.data.chatTemplate` {choice} needs the token {missing[0]}, which the model's"
            " tokenizer lacks; use alpaca or vicuna, which need none"
        )
    if "eos_token" in source and tokenizer.eos_token is None:
        raise UserError(
            f"`spec.data.chatTemplate` {choice} needs an end-of-sequence token, which the model's tokenizer lacks"
        )
    return source


def _pattern(tokens: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the tokens, the longest first."""
    longest_first = sorted((t for t in tokens if not t.isspace()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _mask(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """Return for each token whether it lies in a span; one that straddles a start does not."""
    trained = []
    remaining = iter(spans)
    span = next(remaining, None)
    for start, end in offsets:
        while span and start >= span[1]:
            span = next(remaining, None)
        trained.append(bool(span and start >= span[0] and end > start))
    return trained


def _spans_by_difference(
    messages: list[Message],
    text: str,
    render: Callable[..., str],
    end_at: Callable[[int], int],
) -> list[Span]:
    """Return the character span of each assistant turn: its text and its end token."""
    spans: list[Span] = []
    cursor = 0
    for index, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] != "assistant":
            found = text.find(content, cursor)
            cursor = found + len(content) if found >= 0 else cursor
            continue
        prefix = render(messages[:index], prompt=True)
        is_prefix = text.startswith(prefix) and len(prefix) >= cursor
        start = len(prefix) if is_prefix else cursor
        found = text.find(content, start)
        if found < 0:
            raise UserError(
                "the model's chat template changes the assistant's text, so its turns cannot be"
                " told apart; use rows without such text, or name a template in `data.chatTemplate`"
            )
        # What the template puts between its own prompt and the text (a space, an empty thought) is
        # what the model must produce when it is served: it is trained on.
        begin = start if is_prefix else found
        cursor = end_at(found + len(content))
        spans.append((begin, cursor))
    return spans
