"""What reports look like: our trainer's snapshots, and those that transformers sends by itself.

The second is Kubeflow Trainer's format (KEP-2779; transformers' `KubeflowCallback` speaks it), so that
an image of a user's own is heard too.
"""

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from finetune_api.base import StatusModel
from finetune_api.contract import HISTORY_POINTS, Snapshot
from finetune_api.status import LossPoint, Metrics, Progress

MOST_METRICS = 256
NAMES = {
    "loss": "loss",
    "eval_loss": "evalLoss",
    "learning_rate": "learningRate",
    "grad_norm": "gradNorm",
}
"""Metrics that are kept, by the names that transformers gives them; no others are."""
CLOCKS_DIFFER_SECONDS = 300.0


class BadReport(Exception):
    """A report is none that we know."""


class _Metric(StatusModel):
    name: Annotated[str, Field(max_length=256)]
    value: Annotated[str, Field(max_length=256)]


class _TrainerStatus(StatusModel):
    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    metrics: Annotated[list[_Metric], Field(max_length=MOST_METRICS)] = []
    last_updated_time: datetime


class _Kubeflow(StatusModel):
    trainer_status: _TrainerStatus


class _Ours(Snapshot):
    pass


Report = Snapshot | _Kubeflow
_report: TypeAdapter[Snapshot | _Kubeflow] = TypeAdapter(_Kubeflow | Snapshot)


def read(body: bytes) -> Report:
    """Return the report in a body.

    Raises:
        BadReport: it is neither of the two formats; with the fields that are wrong.
    """
    model = _Kubeflow if b'"trainerStatus"' in body[:64] else Snapshot
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[:3]
        words = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in wrong)
        raise BadReport(words) from error


def snapshot_of(report: Report, status: dict[str, Any], *, attempt: int) -> Snapshot:
    """Return a report as a snapshot of an attempt, onto the status that is there."""
    if isinstance(report, _Kubeflow):
        return _of_kubeflow(report.trainer_status, status, attempt)
    progress = report.progress.model_copy(update={"attempt": attempt})
    return report.model_copy(update={"progress": progress})


def number_of(report: Report) -> int:
    """Return the number of a report among those of its attempt."""
    if isinstance(report, _Kubeflow):
        return _milliseconds(report.trainer_status.last_updated_time)
    return report.progress.sequence


def time_of(report: Report) -> float:
    """Return when a report was made, in seconds since the epoch; 0: it does not say."""
    if isinstance(report, _Kubeflow):
        return report.trainer_status.last_updated_time.timestamp()
    text = report.progress.last_report_time
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def is_last(report: Report) -> bool:
    """Tell whether an attempt's training is through."""
    if isinstance(report, _Kubeflow):
        return report.trainer_status.progress_percentage == 100
    progress = report.progress
    return 0 < progress.total_steps <= progress.step


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _of_kubeflow(found: _TrainerStatus, status: dict[str, Any], attempt: int) -> Snapshot:
    """Return a snapshot: what such a report leaves out is as it was."""
    values = {metric.name: metric.value for metric in found.metrics}
    before = Progress.model_validate(status.get("progress") or {})
    of_same = before.attempt == attempt
    step = _whole(values.get("current_step"), before.step if of_same else 0)
    total = _whole(values.get("total_steps"), before.total_steps)
    if found.progress_percentage == 100 and total:
        step = total
    kept = Metrics.model_validate(status.get("metrics") or {}).model_dump(by_alias=True)
    told = {ours: value for theirs, ours in NAMES.items() if (value := _number(values.get(theirs)))}
    left = found.estimated_remaining_seconds
    progress = Progress(
        summary=f"{step}/{total}" if total else "",
        step=step,
        total_steps=total,
        epoch=_number(values.get("current_epoch") or values.get("epoch")) or before.epoch,
        percent=found.progress_percentage or 0,
        eta_seconds=left,
        eta="" if left is None else f"{left // 60}m{left % 60:02d}s",
        last_report_time=found.last_updated_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        activity="Training",
        attempt=attempt,
        sequence=_milliseconds(found.last_updated_time),
    )
    return Snapshot(
        progress=progress,
        metrics=Metrics.model_validate({**kept, **told}),
        loss_history=_with_point(status.get("lossHistory") or [], step, told.get("loss")),
        eval_history=_with_point(status.get("evalHistory") or [], step, told.get("evalLoss")),
    )


def _with_point(history: list[dict[str, Any]], step: int, loss: str | None) -> list[LossPoint]:
    points = [LossPoint.model_validate(point) for point in history]
    if loss is None or (points and points[-1].loss == loss):
        return points
    points = [*(point for point in points if point.step < step), LossPoint(step=step, loss=loss)]
    if len(points) > HISTORY_POINTS:
        points = [*points[:-1:2], points[-1]]
    return points


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 16 else otherwise


def _number(text: str | None) -> str | None:
    """Return a number as it is written in a status; None for what is none."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return f"{value:.6g}" if math.isfinite(value) else None
