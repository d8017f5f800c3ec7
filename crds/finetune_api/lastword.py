"""The last word of a step as a kubelet carries it: at most 4096 bytes, whatever it has to say."""

import base64
import zlib
from collections.abc import Callable, Iterator

from finetune_api.contract import ErrorReport, Termination
from finetune_api.status import History

LIMIT_BYTES = 4096
"""Of one container's termination message (Kubernetes, `terminationMessagePath`)."""
PACKED = "zlib:"
SHORT_MESSAGE, SHORT_TAIL = 1024, 512
BARE_MESSAGE = 256

Cut = Callable[[Termination], Termination]


def encode(termination: Termination) -> str:
    """Return a last word of at most 4096 bytes: as it is, compressed, or cut where it hurts least."""
    for form in _ever_shorter(termination):
        text = form.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=False)
        if len(text.encode()) <= LIMIT_BYTES:
            return text
        packed = PACKED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        if len(packed) <= LIMIT_BYTES:
            return packed
    return _bare(termination).model_dump_json(by_alias=True, exclude_none=True)


def decode(text: str) -> Termination | None:
    """Return the last word that a message holds; None where it holds none of ours."""
    try:
        if text.startswith(PACKED):
            packed = base64.b64decode(text.removeprefix(PACKED), validate=True)
            # A bound, since whatever runs in a pod may write there.
            text = zlib.decompressobj().decompress(packed, 64 * LIMIT_BYTES).decode()
        return Termination.model_validate_json(text)
    except (ValueError, zlib.error):  # no base64, no text, no JSON, none of ours
        return None


def _ever_shorter(termination: Termination) -> Iterator[Termination]:
    yield termination
    for cut in (_without_preview, _with_short_error, _with_half_history, _with_half_history,
                _with_half_history, _without_row_errors, _without_history):  # fmt: skip
        termination = cut(termination)
        yield termination


def _without_preview(end: Termination) -> Termination:
    if end.validated is None:
        return end
    found = end.validated.model_copy(update={"preview": []})
    return end.model_copy(update={"validated": found})


def _with_short_error(end: Termination) -> Termination:
    if end.error is None:
        return end
    short = end.error.model_copy(
        update={
            "message": end.error.message[:SHORT_MESSAGE],
            "log_tail": end.error.log_tail[-SHORT_TAIL:],
        }
    )
    return end.model_copy(update={"error": short})


def _with_half_history(end: Termination) -> Termination:
    if end.snapshot is None:
        return end
    halves = {name: _half(getattr(end.snapshot, name)) for name in ("loss_history", "eval_history")}
    return end.model_copy(update={"snapshot": end.snapshot.model_copy(update=halves)})


def _without_history(end: Termination) -> Termination:
    if end.snapshot is None:
        return end
    none: dict[str, History] = {"loss_history": [], "eval_history": []}
    return end.model_copy(update={"snapshot": end.snapshot.model_copy(update=none)})


def _bare(end: Termination) -> Termination:
    """Return what decides what follows, and the beginning of what went wrong."""
    said = end.error.message[:BARE_MESSAGE] if end.error else ""
    return Termination(
        exit_code=end.exit_code,
        stop_was_requested=end.stop_was_requested,
        error=ErrorReport(message=said, rank=end.error.rank) if end.error else None,
    )


def _half(points: History) -> History:
    """Return every second point and the last."""
    return points if len(points) < 3 else [*points[:-1:2], points[-1]]


def _without_row_errors(end: Termination) -> Termination:
    if end.validated is None:
        return end
    return end.model_copy(
        update={"validated": end.validated.model_copy(update={"errors": end.validated.errors[:1]})}
    )
