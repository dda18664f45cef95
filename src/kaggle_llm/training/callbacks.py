"""Callbacks of every trainer: progress bar, log, complete checkpoints, and a stop at a non-finite loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaggle_llm.base import processes
from kaggle_llm.training.checkpoints import Checkpoints

HELD_OUT = "held_out_loss"  # of training.watch, in the log
SHOWN = (("loss", "loss", ".4f"), ("learning_rate", "rate", ".1e"), (HELD_OUT, "held out", ".4f"))  # in the bar


def make_callbacks(checkpoints: Checkpoints, log: Path) -> list[Any]:
    """The progress bar, the log (which stops at a non-finite loss), and the mark of complete checkpoints."""
    from transformers import ProgressCallback, TrainerCallback

    shown: dict[str, str] = {}

    class ProgressBar(ProgressCallback):
        """Steps, time left, loss, learning rate and the latest held-out loss in one updating line."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            shown.update({label: format(logs[name], how) for name, label, how in SHOWN if name in (logs or {})})
            if self.training_bar is not None:
                self.training_bar.set_postfix(shown, refresh=False)

    class JsonLog(TrainerCallback):
        """One JSON line a log entry; a resumed training keeps its earlier entries."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                log.write_text("".join(json.dumps(row) + "\n" for row in state.log_history), encoding="utf-8")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            check_loss(logs or {}, state.global_step, args)
            if state.is_world_process_zero:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(state.log_history[-1]) + "\n")

    class CompleteMark(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            processes.share(None)  # wait for the others, which write their random state
            if state.is_world_process_zero:
                checkpoints.complete(state.global_step)

    return [ProgressBar(), JsonLog(), CompleteMark()]


def make_callback(**events: Callable[..., Any]) -> Any:
    """A callback of functions (args, state, control, **others), each named as its event, such as on_step_end."""
    from transformers import TrainerCallback

    return type("Events", (TrainerCallback,), {name: staticmethod(event) for name, event in events.items()})()


def checkpoint_folder(args: Any, state: Any) -> Path:
    """The folder of the checkpoint that is being saved."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def check_loss(logs: dict[str, float], step: int, args: Any) -> None:
    """Raises ValueError for a NaN or infinite loss or gradient, before the step becomes a checkpoint.

    Under fp16's loss scaler an infinite gradient is normal: the scaler skips its step.
    """
    for name in ("loss", HELD_OUT) if args.fp16 else ("loss", HELD_OUT, "grad_norm"):
        value = logs.get(name, 0.0)
        if not math.isfinite(value):
            raise ValueError(
                f"{name} = {value} at step {step}: lower training.learning_rate; the last good checkpoint stays in "
                f"{Path(args.output_dir).name}"
            )
