"""The loss of a run as a picture."""

import json
from pathlib import Path

SMOOTHED_SHARE = 15  # the average spans about a fifteenth of the run; the raw curve stays visible


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential moving average, without its bias towards the first value."""
    kept = max(1 - SMOOTHED_SHARE / len(values), 0.0) if values else 0.0
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average = kept * average + (1 - kept) * value
        weight = kept * weight + (1 - kept)
        result.append(average / weight)
    return result


def plot_losses(log: Path, picture: Path, *, title: str) -> None:
    """Draw training and evaluation loss from a trainer log."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [(line["current_steps"], line["loss"]) for line in lines if "loss" in line]
    evaluated = [
        (line["current_steps"], line["eval_loss"]) for line in lines if "eval_loss" in line
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="loss")
        axes.plot(
            steps, smoothed(list(losses)), color="#2171b5", linewidth=2, label="loss, smoothed"
        )
    if evaluated:
        steps, losses = zip(*evaluated, strict=True)
        axes.plot(steps, losses, color="#d94801", marker="o", markersize=4, label="evaluation loss")
    axes.set(xlabel="optimizer step", ylabel="loss", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if train or evaluated:
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)
