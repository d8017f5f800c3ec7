"""`preview`: rows as the model sees them, one JSON line a row: pieces of text and their kind."""

import json
from pathlib import Path

from finetune_api.contract import JobFile
from finetune_api.data import Data
from finetune_api.resolve import DEFAULT_LENGTH
from finetune_trainer.data.chat import ChatEncoder
from finetune_trainer.data.convert import registered_conversations
from finetune_trainer.errors import StepError
from finetune_trainer.models import load_tokenizer, prepare_model
from finetune_trainer.prepare import inspect


def preview(file: JobFile) -> int:
    """Print the first rows of each dataset as `{dataset, row, tokens, pieces: [[kind, text]]}`.

    The last line is `{prepared}`: what `prepare` found. Kinds: `context` is read only, `trained`
    carries loss, `cut` is beyond `data.maxLength`.
    """
    try:
        _print_rows(file)
        # After the rows: what refuses the job is understood by looking at them.
        found = inspect(file)
        print(json.dumps({"prepared": found.model_dump(mode="json", by_alias=True)}), flush=True)
    except StepError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return error.exit_code
    return 0


def _print_rows(file: JobFile) -> None:
    assert file.job is not None, "a preview has a job"
    wanted = int(file.options.get("rows") or 3)
    data = file.job.data or Data()
    model = prepare_model(file.job.model, file.folders)
    tokenizer = load_tokenizer(Path(file.folders.cache) / model.folder)
    encoder = ChatEncoder(tokenizer, data)
    length = data.max_length or min(DEFAULT_LENGTH, model.max_length or DEFAULT_LENGTH)
    for dataset in file.datasets:
        rows = registered_conversations(dataset, file.folders)
        for number, messages in zip(range(1, wanted + 1), rows, strict=False):
            tokens = encoder.encode(messages)
            kinds = [
                "cut" if place >= length else "trained" if trained else "context"
                for place, trained in enumerate(tokens.trained)
            ]
            pieces = _pieces(tokenizer, tokens.input_ids, kinds)
            line = {"dataset": dataset.name, "row": number, "tokens": len(kinds), "pieces": pieces}
            print(json.dumps(line, ensure_ascii=False), flush=True)


def _pieces(tokenizer: object, ids: list[int], kinds: list[str]) -> list[tuple[str, list[str]]]:
    """Join neighbouring tokens of one kind; each piece keeps its tokens' texts."""
    pieces: list[tuple[str, list[str]]] = []
    for token, kind in zip(ids, kinds, strict=True):
        text = tokenizer.decode([token])  # type: ignore[attr-defined]
        if pieces and pieces[-1][0] == kind:
            pieces[-1][1].append(text)
        else:
            pieces.append((kind, [text]))
    return pieces
