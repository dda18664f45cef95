"""Makes padded batches of token ids, on which encoders and heads are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kaggle_llm.engines.generation import pad_rows
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.tokenizer import choose_pad

if TYPE_CHECKING:
    import torch


def pad_right(model: Any, rows: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, [rows, longest], on the model's device.

    Padded with the pad token of the model's config: RoBERTa does not count its positions.
    """
    device = next(model.parameters()).device  # a wrapper of DDP has no device of its own
    ids, mask = pad_rows(rows, unwrap(model).config.get_text_config().pad_token_id or 0, device, left=False)
    return {"input_ids": ids, "attention_mask": mask}


def pad_for_head(model: Any, rows: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """Like pad_right, with a padding id in the model's config that a causal head cannot take for a row's last token."""
    config = unwrap(model).config.get_text_config()
    config.pad_token_id = choose_pad(rows, config.pad_token_id)
    return pad_right(model, rows)


def unwrap(model: Any) -> Any:
    """The model inside DDP's wrapper."""
    return getattr(model, "module", model)
