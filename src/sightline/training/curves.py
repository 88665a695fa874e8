"""Loss and learning-rate curves of a run as one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.files import replacing


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start."""
    result, average, mass = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        result.append(average / mass)
    return result


def draw_curves(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss (smoothed and raw), the validation loss and the learning rate over the steps."""
    from matplotlib.figure import Figure

    train = [entry for entry in entries if "loss" in entry]
    held = [entry for entry in entries if "eval_loss" in entry]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    steps = [entry["step"] for entry in train]
    losses = [entry["loss"] for entry in train]
    left.plot(steps, losses, color="#9db7e8", linewidth=0.8, label="training loss")
    left.plot(steps, smooth(losses), color="#1f4fbf", linewidth=1.8, label="smoothed")
    if held:
        left.plot(
            [entry["step"] for entry in held],
            [entry["eval_loss"] for entry in held],
            color="#d1495b",
            marker="o",
            markersize=3,
            label="validation loss",
        )
    left.set(xlabel="step", ylabel="loss per supervised token", ylim=(0, None))
    left.legend(frameon=False)
    rates = [entry.get("learning_rate", 0.0) for entry in train]
    right.plot(steps, rates, color="#3a7d44")
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)
