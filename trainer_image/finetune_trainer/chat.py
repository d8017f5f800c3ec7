"""`chat`: answers of the tuned model, and of the base model beside it, streamed as JSON lines.

Reads one JSON line a question (`{"message": text}` or `{"reset": true}`), writes
`{"model": "base"|"tuned", "text": piece}` and `{"done": true}`.
"""

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

from finetune_api.contract import JobFile
from finetune_trainer.adapters import load
from finetune_trainer.errors import StepError
from finetune_trainer.models import load_model, load_tokenizer
from finetune_trainer.sources import claim_path


def chat(file: JobFile) -> int:
    """Answer questions until standard input ends."""
    try:
        speakers, tokenizer = _load(file)
    except StepError as error:
        _say(error=str(error))
        return error.exit_code
    _say(ready=True)
    histories: dict[str, list[dict[str, str]]] = {name: [] for name in speakers}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("reset"):
            histories = {name: [] for name in speakers}
            continue
        for name, (model, context) in speakers.items():
            histories[name].append({"role": "user", "content": request["message"]})
            with context():
                answer = _answer(model, tokenizer, histories[name], name, file)
            histories[name].append({"role": "assistant", "content": answer})
        _say(done=True)
    return 0


def _load(file: JobFile) -> tuple[dict[str, tuple[Any, Any]], Any]:
    """Load the model once; the base answers with the adapter switched off."""
    assert file.prepared is not None, "a chat has a trained job"
    output = claim_path(file.output, file.folders)
    tokenizer = load_tokenizer(output)
    base_folder = Path(file.folders.cache) / file.prepared.model.folder
    compare = bool(file.options.get("compare"))
    if (output / "adapter_config.json").is_file():
        from peft import PeftModel

        model = load(
            load_model(base_folder, dtype="auto", attention="auto"), output, PeftModel
        ).eval()
        speakers = {"tuned": (model, contextlib.nullcontext)}
        return (
            {"base": (model, model.disable_adapter), **speakers} if compare else speakers
        ), tokenizer
    tuned = load_model(output, dtype="auto", attention="auto").eval()
    speakers = {"tuned": (tuned, contextlib.nullcontext)}
    if compare:
        base = load_model(base_folder, dtype="auto", attention="auto").eval()
        speakers = {"base": (base, contextlib.nullcontext), **speakers}
    return speakers, tokenizer


def _answer(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], name: str, file: JobFile
) -> str:
    import torch
    from transformers import TextIteratorStreamer

    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    arguments = {
        **inputs,
        "streamer": streamer,
        "max_new_tokens": int(file.options.get("maxNewTokens") or 128),
        "do_sample": False,  # comparable answers; a preference of sampling is the server's matter
        "pad_token_id": tokenizer.pad_token_id or tokenizer.eos_token_id,
        "eos_token_id": _end_tokens(model, tokenizer),
    }
    with torch.no_grad():
        thread = threading.Thread(target=model.generate, kwargs=arguments)
        thread.start()
        answer = ""
        for piece in streamer:
            answer += piece
            _say(model=name, text=piece)
        thread.join()
    return answer


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, the model's, and the template's."""
    configured = model.generation_config.eos_token_id
    tokens = {
        tokenizer.eos_token_id,
        *(configured if isinstance(configured, list) else [configured]),
    }
    for token, number in tokenizer.get_added_vocab().items():
        if token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"):
            tokens.add(number)
    return sorted(token for token in tokens if token is not None)


def _say(**fields: object) -> None:
    print(json.dumps(fields, ensure_ascii=False), flush=True)
