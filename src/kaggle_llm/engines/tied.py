"""Whether a model's head is what its config says: transformers reads the weights, vLLM only the config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def has_own_head(model: Path) -> bool:
    """Whether the config ties the head to the embeddings, but the weights hold another head."""
    import torch

    files = find_tensors(model, (HEAD, *EMBEDDINGS))
    heads = {name: file for name, file in files.items() if name.endswith(HEAD)}
    embeddings = {name: file for name, file in files.items() if name.endswith(EMBEDDINGS)}
    if len(heads) != 1 or len(embeddings) != 1 or not ties_head(model):
        return False
    first, second = (read_tensor(file, name) for names in (heads, embeddings) for name, file in names.items())
    return not torch.equal(first, second)


def find_tensors(model: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Tensor name → safetensors file, for names with one of the endings."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= {name: file for name in opened.keys() if name.endswith(endings)}  # noqa: SIM118 - no mapping
    return files


def ties_head(model: Path) -> bool:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    return bool(config.get_text_config().tie_word_embeddings)


def read_tensor(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor
