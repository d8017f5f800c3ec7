"""A conversation to token ids and a mask of what is trained on.

The ids are those of the tokenizer's own chat template: what serving will see. The mask comes from
`{% generation %}` markers; a template without them is rendered turn by turn, and where a turn of the
assistant begins and ends follows from the difference.
"""

import itertools
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

GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>")
# Private-use characters, never in real text: around text that must not become a control token (the
# ones transformers marks it with), and behind the text of an assistant's turn.
OPEN, CLOSE, STOP = "\U000f0000", "\U000f0001", "\U000f0002"
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
    """Return a template without generation markers, which not every server knows.

    A block stands in for each: to remove a marker would change the white space around it.
    """
    return GENERATION.sub(
        lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source
    )


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
        written = [token for token in added if token.special or token.content in self.template]
        # An assistant may write added tokens that are not special, such as <think>; nobody may end
        # a turn from within a text.
        self._control = _pattern([token.content for token in written])
        self._ending = _pattern(
            [t.content for t in written if t.special or CONTROL_TOKEN.fullmatch(t.content)]
        )
        # A template that splits a text can part two marks: each alone means nothing.
        self._marked = re.compile(f"{OPEN}({self._control.pattern}){CLOSE}|[{OPEN}{CLOSE}]")
        self._newline: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]

    def encode(self, messages: list[Message]) -> Tokens:
        """Return a conversation's token ids and which of them are trained on.

        Raises:
            UserError: the template refuses the conversation, or hides where a turn is.
        """
        messages = self._guarded(messages)
        text, spans = self._render(messages)
        if not self._has_markers:
            spans = _spans_by_difference(messages, text, self._plain, self._control.pattern)
        if self._data.train_on is TrainOn.LAST_TURN:
            # A template may mark more than one span in a turn.
            earlier = self._render(messages[:-1], prompt=True)[1]
            spans = spans[len(earlier) if self._has_markers else -1 :]
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
        content = re.sub(f"[{OPEN}{CLOSE}{STOP}]", "", message["content"])
        control = self._ending if message["role"] == "assistant" else self._control
        return control.sub(rf"{OPEN}\g<0>{CLOSE}", content)

    def _plain(self, messages: list[Message], *, prompt: bool = False) -> str:
        return self._render(messages, prompt=prompt)[0]

    def _render(self, messages: list[Message], *, prompt: bool = False) -> tuple[str, list[Span]]:
        """Return a conversation's text and what the template's markers enclose."""
        try:
            rendered, spans = render_jinja_template(
                [messages],
                chat_template=self.template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=self._has_markers,
                **self._kwargs,
            )
        except Exception as error:
            # Templates raise jinja2 errors, TypeErrors, anything: all of them refuse the row.
            raise UserError(
                f"the chat template refuses a conversation: {error}; change the rows, or set"
                " `data.chatTemplate`"
            ) from error
        return str(rendered[0]), [(int(start), int(end)) for start, end in (spans or [[]])[0]]

    def _tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """Return ids and their character spans in `text`."""
        ids: list[int] = []
        offsets: list[Span] = []
        position = 0
        for mark in [*self._marked.finditer(text), None]:
            piece = text[position : mark.start() if mark else len(text)]
            piece_ids, piece_offsets = self._tokenize_piece(piece, first=position == 0)
            ids += piece_ids
            offsets += [(position + start, position + end) for start, end in piece_offsets]
            if mark is None:
                break
            as_text = self._as_text(mark[1]) if mark[1] else []
            ids += as_text
            offsets += [mark.span()] * len(as_text)
            position = mark.end()
        return ids, offsets

    def _tokenize_piece(self, piece: str, *, first: bool) -> tuple[list[int], list[Span]]:
        def encoded(text: str) -> tuple[list[int], list[Span]]:
            found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return found["input_ids"], found["offset_mapping"]

        if not piece:
            return [], []
        if not first:
            # SentencePiece puts a space before the start of a text; a piece is not the start.
            ids, offsets = encoded("\n" + piece)
            known = len(self._newline)
            if ids[:known] == self._newline:
                return ids[known:], [(start - 1, end - 1) for start, end in offsets[known:]]
        return encoded(piece)

    def _as_text(self, token: str) -> list[int]:
        """Return the ids of a control token's characters."""
        # `split_special_tokens` would still find added tokens that are not special.
        ids: list[int] = self._tokenizer._encode_without_added_tokens("\n" + token)
        known = len(self._newline)
        if ids[:known] == self._newline:
            ids = ids[known:]
        else:
            ids = self._tokenizer._encode_without_added_tokens(token)
        if self._tokenizer.convert_tokens_to_ids(token) in ids:
            raise UserError(
                f"a row holds {token} as text, which the model's tokenizer cannot tell from the"
                " control token; take it out of the rows"
            )
        return ids


def _template(tokenizer: PreTrainedTokenizerBase, choice: str) -> str:
    if choice == "auto":
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not isinstance(own, str):
            raise UserError(
                "`spec.data.chatTemplate` is auto, but the model has no chat template (it is a base"
                " model); name one, e.g. `chatTemplate: alpaca`"
            )
        return own
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
            f"`spec.data.chatTemplate` {choice} needs an end-of-sequence token, which the model's"
            " tokenizer lacks; use a model that has one"
        )
    return source


def _pattern(tokens: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the tokens, the longest first."""
    longest_first = sorted((t for t in tokens if not t.isspace()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _mask(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """Return for each token whether it lies in a span; one that straddles a start does not."""
    trained = []
    remaining = iter(spans)
    span = next(remaining, None)
    before = 0
    for start, end in offsets:
        # Some tokenizers leave white space out of offsets: a token starts where the last one ended.
        start = min(start, before)
        while span and start >= span[1]:
            span = next(remaining, None)
        trained.append(span is not None and start >= span[0])
        before = max(before, end)
    return trained


def _spans_by_difference(
    messages: list[Message], text: str, render: Callable[..., str], tokens: str
) -> list[Span]:
    """Return the character span of each assistant turn: its text and its end token.

    `tokens` is a pattern of the tokens that may end a turn.
    """
    texts = _texts_by_difference(messages, text, render)
    # Some templates end a turn with two tokens: how many, only the last turn shows.
    closing = re.compile(rf"\s*((?:{tokens})+)").match(text, texts[-1][1])
    end = re.compile(rf"\s*(?:{re.escape(closing[1]) if closing else '(?!)'}|{tokens})")
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    spans: list[Span] = []
    cursor = 0
    for index, (begin, stop) in zip(turns, texts, strict=True):
        prompt = render(messages[:index], prompt=True)
        # What the template puts between its own prompt and the text (a space, an empty thought) is
        # what the model must produce when it is served: it is trained on.
        if text.startswith(prompt) and cursor <= len(prompt):
            begin = len(prompt)
        found = end.match(text, stop)
        cursor = found.end() if found else stop
        spans.append((begin, cursor))
    return spans


def _texts_by_difference(
    messages: list[Message], text: str, render: Callable[..., str]
) -> list[Span]:
    """Return the character span of each assistant turn's text, without white space behind it."""
    contents = [m["content"].rstrip() for m in messages if m["role"] == "assistant"]
    pieces = render([_with_stop(message) for message in messages]).split(STOP)
    stops = list(itertools.accumulate(map(len, pieces[:-1])))
    spans: list[Span] = []
    for content, begin, stop in zip(contents, [0, *stops], stops, strict=False):
        # A template may strip the text.
        kept = content if text.endswith(content, begin, stop) else content.lstrip()
        if text.endswith(kept, begin, stop):
            spans.append((stop - len(kept), stop))
    if "".join(pieces) != text or len(spans) != len(contents) or len(stops) != len(contents):
        raise UserError(
            "the model's chat template changes the assistant's text, so its turns cannot be told"
            " apart; use rows without such text, or name a template in `data.chatTemplate`"
        )
    return spans


def _with_stop(message: Message) -> Message:
    """Mark where an assistant's text ends, before white space that a template may strip."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    end = len(content.rstrip())
    return {**message, "content": content[:end] + STOP + content[end:]}
