"""`preview` and `chat`: the trainer in a process of its own, its answers shown here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from finetune_api.errors import Refusal
from finetune_operator.local.tools import Preview, interactive_step

STYLES = {"context": "dim", "trained": "bold green", "cut": "strike red"}
LEGEND = "trained: carries loss   context: read only   cut: beyond data.maxLength"


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            message = json.loads(line)
            if "error" in message:
                raise Refusal([message["error"]])
            yield message


def show_preview(seen: Preview, *, as_json: bool) -> None:
    """Print rows as coloured tokens; every second token is underlined, so that borders show."""
    console = Console(soft_wrap=True, highlight=False)
    with interactive_step("preview", seen.job_file) as process:
        for row in _lines(process):
            if "prepared" in row and not as_json:
                console.print(LEGEND, style="dim")
                print(f"\n{seen.resolved_text(row['prepared'])}")
                continue
            if as_json:
                print(json.dumps(row, ensure_ascii=False))
                continue
            console.print(f"[bold]{row['dataset']}[/] row {row['row']}: {row['tokens']} tokens")
            text, number = Text(), 0
            for kind, tokens in row["pieces"]:
                for token in tokens:
                    style = (
                        f"{STYLES[kind]} underline"
                        if number % 2 and console.is_terminal
                        else STYLES[kind]
                    )
                    text.append(token, style=style)
                    number += 1
            console.print(text)
            if not console.is_terminal:
                _plain_legend(row)
            console.print()


def _plain_legend(row: dict[str, Any]) -> None:
    """Say in words what colours cannot say in a log."""
    for kind, tokens in row["pieces"]:
        print(
            f"  {kind:<8}{len(tokens):>5} tokens  {json.dumps(''.join(tokens), ensure_ascii=False)[:90]}"
        )


def chat(job_file: Path, *, prompt: str | None) -> None:
    """Answer one prompt, or prompts until the user ends; `/reset` forgets what was said."""
    console = Console(highlight=False)
    with interactive_step("chat", job_file) as process:
        assert process.stdin is not None
        answers = _lines(process)
        console.print("Loading the model ...", style="dim")
        next(answers)
        if prompt is None:
            console.print("Ask something. /reset begins anew, Ctrl-D ends.", style="dim")
        for question in [prompt] if prompt is not None else _questions(console):
            request = {"reset": True} if question == "/reset" else {"message": question}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if question != "/reset":
                _print_answers(answers, console)
        process.stdin.close()


def _questions(console: Console) -> Iterator[str]:
    while True:
        try:
            question = console.input("[bold]you>[/] ") if sys.stdin.isatty() else input()
        except (EOFError, KeyboardInterrupt):
            return
        if question.strip():
            yield question.strip()


def _print_answers(answers: Iterator[dict[str, Any]], console: Console) -> None:
    speaker = None
    for piece in answers:
        if piece.get("done"):
            break
        if piece["model"] != speaker:
            speaker = piece["model"]
            colour = "cyan" if speaker == "tuned" else "yellow"
            console.print(f"\n[bold {colour}]{speaker}>[/] ", end="")
        console.print(piece["text"], end="", markup=False, soft_wrap=True)
    console.print("\n")
