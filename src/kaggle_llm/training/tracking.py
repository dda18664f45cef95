"""TensorBoard and Weights & Biases, chosen by `training.track`: they get settings, git state, parents and losses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal


@contextmanager
def tracking(tracker: str, folder: Path, about: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The trainer's callbacks for a tracker (training.track), whose files go into `folder`.

    about: run, config, git state and parents, sent with the run; no environment variables, keys or machine data are.
    """
    if tracker == "off":
        yield []
    elif tracker == "tensorboard":
        yield from _tensorboard(folder, about)
    else:
        yield from _wandb("offline" if tracker == "wandb-offline" else "online", folder, about)


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
    # Keep wandb from reading the machine itself: command line, host, git remote with a token in it.
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
        yield [WandbCallback()]  # logs into the open run
    finally:
        run.finish()
