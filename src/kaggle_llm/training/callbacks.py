"""What every trainer does beside training: a bar, a log, whole checkpoints, and a stop where numbers break."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kaggle_llm.base import processes
from kaggle_llm.training.checkpoints import Checkpoints


def make_callbacks(checkpoints: Checkpoints, log: Path) -> list[Any]:
    """The bar and the log, the stop before a broken step becomes a checkpoint, and the mark of a whole one."""
    from transformers import ProgressCallback, TrainerCallback

    class Bar(ProgressCallback):
        """Steps, time left, loss and learning rate in one line instead of a line a step."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if self.training_bar is not None and "loss" in (logs or {}):
                shown = {"loss": f"{logs['loss']:.4f}", "rate": f"{logs.get('learning_rate', math.nan):.1e}"}
                self.training_bar.set_postfix(shown, refresh=False)

    class Log(TrainerCallback):
        """One JSON line an entry, as it comes; a resumed training's begins with what was there."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                log.write_text("".join(json.dumps(row) + "\n" for row in state.log_history), encoding="utf-8")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            check_finite(logs or {}, state.global_step, args)
            if state.is_world_process_zero:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(state.log_history[-1]) + "\n")

    class Mark(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            processes.share(None)  # others may still be writing their random state
            if state.is_world_process_zero:
                checkpoints.complete(state.global_step)

    return [Bar(), Log(), Mark()]


def check_finite(logs: dict[str, float], step: int, args: Any) -> None:
    """Raises ValueError for a NaN or infinite loss or gradient, before the step becomes a checkpoint.

    Under fp16's loss scaler an infinite gradient is normal: the scaler skips its step.
    """
    for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
        value = logs.get(name, 0.0)
        if not math.isfinite(value):
            raise ValueError(
                f"{name} = {value} at step {step}: lower training.learning_rate; the last good checkpoint stays in "
                f"{Path(args.output_dir).name}"
            )
