"""Complete snapshots of progress, written by rank 0 as one small file."""

import math
import time
from pathlib import Path

from finetune_api.contract import HISTORY_POINTS, PROGRESS_FILE, JobFile, Snapshot
from finetune_api.status import Checkpoints, CheckpointState, History, LossPoint, Metrics, Progress
from finetune_trainer.files import write_whole

LEAST_SECONDS_BETWEEN_REPORTS = 1.0


def utc_now() -> str:
    """Return the time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def thinned(points: list[LossPoint], limit: int = HISTORY_POINTS) -> History:
    """Return at most `limit` points, evenly chosen, the first and the last among them."""
    if len(points) <= limit:
        return points
    return [points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit)]


def duration(seconds: float) -> str:
    """Return seconds as people say them, e.g. `1h02m`, `3m05s`, `12s`."""
    whole = max(int(seconds), 0)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class ProgressReporter:
    """Keeps what is known of a run and writes it for whoever watches."""

    def __init__(self, file: JobFile, *, total_steps: int, first_step: int) -> None:
        """Start counting speed at `first_step`: a resumed run must not count what was done before."""
        self._path = Path(file.folders.step) / PROGRESS_FILE
        self._attempt, self._total, self._first = file.attempt, total_steps, first_step
        self._started = time.monotonic()
        self._sequence = 0
        self._written = 0.0
        self.activity = "Loading"
        self.step, self.epoch, self.tokens = first_step, 0.0, 0
        self.losses: list[LossPoint] = []
        self.eval_losses: list[LossPoint] = []
        self.metrics: dict[str, str] = {}
        self.checkpoints: dict[str, CheckpointState] = {}

    def record(self, logs: dict[str, float], step: int) -> None:
        """Take a line of the trainer's log."""
        if "loss" in logs:
            self.metrics["loss"] = f"{logs['loss']:.4f}"
            self.losses.append(LossPoint(step=step, loss=f"{logs['loss']:.4f}"))
        for key, name in (("learning_rate", "learningRate"), ("grad_norm", "gradNorm")):
            if key in logs:
                self.metrics[name] = f"{logs[key]:.4g}"
        if "eval_loss" in logs:
            self.metrics["evalLoss"] = f"{logs['eval_loss']:.4f}"
            self.eval_losses.append(LossPoint(step=step, loss=f"{logs['eval_loss']:.4f}"))
            best = min(float(point.loss) for point in self.eval_losses)
            self.metrics["bestEvalLoss"] = f"{best:.4f}"

    def snapshot(self) -> Snapshot:
        """Return everything known, complete."""
        elapsed = time.monotonic() - self._started
        done = self.step - self._first
        left = (self._total - self.step) * elapsed / done if done else None
        speed = self.tokens / elapsed if done and elapsed else None
        self._sequence += 1
        return Snapshot(
            progress=Progress(
                summary=f"{self.step}/{self._total}",
                step=self.step,
                total_steps=self._total,
                epoch=f"{self.epoch:.2f}",
                percent=math.floor(100 * self.step / self._total),
                eta="" if left is None else duration(left),
                eta_seconds=None if left is None else round(left),
                tokens_per_second=None if speed is None else f"{speed:.0f}",
                last_report_time=utc_now(),
                activity=self.activity,
                attempt=self._attempt,
                sequence=self._sequence,
                resumed_from_step=self._first or None,
            ),
            metrics=Metrics.model_validate(self.metrics),
            loss_history=thinned(self.losses),
            eval_history=thinned(self.eval_losses),
            checkpoints=Checkpoints.model_validate(self.checkpoints),
        )

    def report(self, *, now: bool = False) -> None:
        """Write a snapshot, at most one a second unless it matters now."""
        if not now and time.monotonic() - self._written < LEAST_SECONDS_BETWEEN_REPORTS:
            return
        self._written = time.monotonic()
        write_whole(self._path, self.snapshot().model_dump_json(by_alias=True))

    @property
    def elapsed_seconds(self) -> float:
        """Return the seconds since this attempt began to train."""
        return time.monotonic() - self._started
