"""The one place where engines are made."""

from __future__ import annotations

from pathlib import Path

from kaggle_llm.inference.engine import Engine, EngineSettings


def make_engine(folder: Path, settings: EngineSettings) -> Engine:
    """An engine for the model in `folder`."""
    from transformers.utils import logging

    from kaggle_llm.inference.transformers_engine import TransformersEngine

    logging.disable_progress_bar()  # "Loading weights" of a second or two, in every log
    return TransformersEngine(folder, settings)
