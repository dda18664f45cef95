"""TensorBoard and Weights & Biases by a config word. What is logged: settings, git state, parents, the curve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal


@contextmanager
def tracking(word: str, folder: Path, about: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The trainer's callbacks for the tracker `word`, whose files go into `folder`.

    about: run, config, git state and parents, attached to the run. No environment, no key, no machine is sent along.
    """
    if word == "off":
        yield []
    elif word == "tensorboard":
        yield from _tensorboard(folder, about)
    else:
        yield from _wandb("offline" if word == "wandb-offline" else "online", folder, about)


def _tensorboard(folder: Path, about: Mapping[str, Any]) -> Iterator[list[Any]]:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    with SummaryWriter(str(folder)) as writer:
        writer.add_text("about", "```\n" + json.dumps(dict(about), indent=2, ensure_ascii=False) + "\n```")
        yield [TensorBoardCallback(writer)]


def _wandb(mode: Literal["online", "offline"], folder: Path, about: Mapping[str, Any]) -> Iterator[list[Any]]:
    import wandb
    from transformers.integrations import WandbCallback

    folder.mkdir(parents=True, exist_ok=True)
    # Not wandb's own look at the machine: command line, host, git remote with whatever token stands in it.
    settings = wandb.Settings(disable_git=True, disable_code=True, x_disable_meta=True, x_disable_machine_info=True)
    run = wandb.init(
        project=about.get("competition", "kaggle-llm"),
        name=about.get("run"),
        config=dict(about),
        dir=str(folder),
        mode=mode,
        settings=settings,
    )
    try:
        yield [WandbCallback()]  # it finds the open run and logs into it
    finally:
        run.finish()
