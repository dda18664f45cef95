"""`training.watch`: the loss of examples that are held out of a training, every few steps.

They are the last examples, taken out before the training, and never rows of the validated fold: CV stays honest with
`keep: best` too. Leaves the losses in log.jsonl, as held_out_loss, and their curve beside the trained model: loss.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kaggle_llm.base import processes, records
from kaggle_llm.training.callbacks import HELD_OUT, checkpoint_folder, make_callback
from kaggle_llm.training.plan import split_step
from kaggle_llm.training.settings import TrainingSettings, WatchSettings
from kaggle_llm.training.weight_copies import WeightCopy

if TYPE_CHECKING:
    from kaggle_llm.training.task import Task

Example = TypeVar("Example")
CURVE = "loss.png"


def hold_out(examples: Sequence[Example], settings: WatchSettings) -> tuple[Sequence[Example], Sequence[Example]]:
    """Examples to train on, and the last ones, which are watched; raises ValueError where none is left to train on."""
    if settings.rows >= len(examples):
        raise ValueError(f"training.watch.rows = {settings.rows} of {len(examples)} examples: none is left to train on")
    start = len(examples) - settings.rows
    return examples[:start], examples[start:]


class Watch:
    """Looks at the held-out loss of a trainer's model; every process computes all of it."""

    def __init__(self, task: Task[Any], examples: Sequence[Any], training: TrainingSettings) -> None:
        self.task, self.examples, self.settings = task, examples, training.watch
        lengths = [task.length(example) for example in examples]
        starts = range(0, len(examples), training.batch)
        steps = [list(range(start, min(start + training.batch, len(examples)))) for start in starts]
        self.parts = [
            part for step in steps for part in split_step(step, lengths, task.padded, training.part_tokens, 1) if part
        ]
        self.best: WeightCopy | None = None

    def attach(self, trainer: Any, average: WeightCopy | None, latest: Path | None) -> None:
        """Look at every few steps of a trainer; at the average's weights where there is one.

        latest: the checkpoint from which it goes on.
        """
        if self.settings.keep == "best":
            self.best = WeightCopy("best", trainer.model, device="cpu")
            if latest and (latest / self.best.file).is_file():
                self.best.load(latest)

        def look(args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % self.settings.steps and state.global_step != state.max_steps:
                return
            with average.in_place() if average else nullcontext():
                trainer.log({HELD_OUT: self.measure(trainer)})
                losses = list_losses(state.log_history)
                if self.best and min(losses, key=losses.__getitem__) == state.global_step:
                    self.best.take()
            if self.settings.patience and count_since_best(losses) >= self.settings.patience:
                control.should_training_stop = True
                control.should_save = False  # a resume would train on from a checkpoint of the stop

        def save(args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.best and self.best.weights and state.is_world_process_zero:
                self.best.save(checkpoint_folder(args, state))

        trainer.add_callback(make_callback(on_step_end=look, on_save=save))

    def measure(self, trainer: Any) -> float:
        """The task's mean loss over the held-out examples' loss units, without dropout."""
        import torch

        model = trainer.model_wrapped
        model.eval()
        with torch.no_grad(), trainer.compute_loss_context_manager():
            total = sum(float(self.task.loss(model, [self.examples[i] for i in part])) for part in self.parts)
        return total / sum(self.task.weight(example) for example in self.examples)

    def finish(self, trainer: Any, folder: Path) -> None:
        """Give the model the best step's weights where the settings say so, and draw the curve into `folder`."""
        losses = list_losses(trainer.state.log_history)
        best, last = min(losses, key=losses.__getitem__), max(losses)
        if self.best:
            self.best.put()
        if processes.is_first():
            kept = f"; kept: step {best if self.best else trainer.state.global_step}"
            print(
                f"held-out loss of {len(self.examples)} examples: {losses[best]:.4f} at step {best}, "
                f"{losses[last]:.4f} at step {last}, the last{kept}",
                flush=True,
            )
            draw_losses(trainer.state.log_history, folder / CURVE)


def list_losses(log: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Step → held-out loss, in the order of the log."""
    return {int(row["step"]): row[HELD_OUT] for row in log if HELD_OUT in row}


def count_since_best(losses: Mapping[int, float]) -> int:
    """Number of looks since the one with the lowest loss."""
    values = list(losses.values())
    return len(values) - 1 - values.index(min(values))


def draw_losses(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """loss.png: the loss of each step's examples, and of the held-out ones."""
    from matplotlib.figure import Figure

    trained = {row["step"]: row["loss"] for row in log if "loss" in row}
    held_out = list_losses(log)
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    axes.plot(list(trained), list(trained.values()), color="#b0b0b0", linewidth=1, label="each step's examples")
    axes.plot(list(held_out), list(held_out.values()), color="#2a7f62", marker="o", label="held-out examples")
    axes.axvline(min(held_out, key=held_out.__getitem__), color="#c58b00", linestyle=":", label="lowest")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(fontsize=8)
    records.write_file(path, lambda target: figure.savefig(target, format="png", dpi=100))
