"""What a training left, merged into its base model, as an ordinary model folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kaggle_llm import records
from kaggle_llm.prompts import load_tokenizer
from kaggle_llm.training.models import ADAPTER, CLASSES

NOT_A_MODEL = {"log.jsonl", records.RECORD}  # what lies beside the weights of a training


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """W + (alpha/r)·B·A for every adapted matrix, and a trained head, by PEFT in fp32; with tokenizer and configs.

    A causal model, a sequence or token head, or a masked LM, as the adapter's task_type says. What training with
    method full left is a whole model: it is linked. QLoRA's adapter is merged into the base's own weights, not
    into their 4-bit copies.
    Raises ValueError where the adapter names a module or a shape that the base has not, and where neither of them
    has weights that the model needs.
    """
    if not (adapter / ADAPTER).is_file():
        return link_model(adapter, folder)
    from peft import PeftModel

    model, drawn = load_base(base, adapter)
    try:
        attached = PeftModel.from_pretrained(model, adapter)
    except RuntimeError as error:  # torch's message for shapes that differ
        raise ValueError(f"adapter {adapter} does not fit the base model {base}: {error}") from error
    check_places(attached, base, adapter)
    check_drawn(attached, drawn, base, adapter)
    attached.merge_and_unload(safe_merge=True).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def load_base(base: Path, adapter: Path) -> tuple[Any, set[str]]:
    """The base in fp32 as the class that the adapter was trained on, and the matrices that were drawn for it."""
    import torch
    import transformers

    task_type = records.read_json(adapter / ADAPTER)["task_type"]
    classes = {name: (kind, maker) for kind, (maker, name) in CLASSES.items()}
    if task_type not in classes:
        raise ValueError(f"adapter {adapter} has the task_type {task_type!r}: {sorted(classes)} can be merged")
    kind, maker = classes[task_type]
    changes = head_config(adapter) if kind in ("sequence", "token") else {}
    model, info = getattr(transformers, maker).from_pretrained(
        base, dtype=torch.float32, local_files_only=True, output_loading_info=True, **changes
    )
    return model, {key for key in info["missing_keys"] if model.get_parameter(key).ndim > 1}  # others begin as 0 or 1


def head_config(adapter: Path) -> dict[str, Any]:
    """What the trained model's config.json says of its head; the rest is the base's."""
    if not (adapter / "config.json").is_file():
        raise ValueError(f"adapter {adapter} has a head but no config.json, which says how many labels it has")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(adapter)
    names = ("id2label", "label2id", "problem_type")
    return {name: getattr(config, name) for name in names} | {"pad_token_id": config.get_text_config().pad_token_id}


def check_places(attached: Any, base: Path, adapter: Path) -> None:
    """Raises ValueError where the adapter's tensors and the places for them are not the same."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    places = set(get_peft_model_state_dict(attached))
    if stored != places:
        raise ValueError(
            f"adapter {adapter} has {len(stored)} tensors, base {base} has {len(places)} places for them, "
            f"{len(stored & places)} of the same name: another base?"
        )


def check_drawn(attached: Any, drawn: set[str], base: Path, adapter: Path) -> None:
    """Raises ValueError for matrices that were drawn at random here, and therefore otherwise than in training."""
    from peft.utils import ModulesToSaveWrapper

    model = attached.get_base_model()
    trained = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    lost = sorted(key for key in drawn if not any(key.startswith(f"{name}.") for name in trained))
    if lost:
        raise ValueError(f"neither the base {base} nor the adapter {adapter} has the weights {lost}")


def link_model(source: Path, folder: Path) -> None:
    """A whole model's files under another folder, without copying their bytes where the file system can.

    Raises ValueError where `source` holds no model.
    """
    if not (source / "config.json").is_file() or not list(source.glob("*.safetensors")):
        raise ValueError(f"{source} holds neither an adapter ({ADAPTER}) nor a model (config.json, *.safetensors)")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in NOT_A_MODEL:
            try:
                os.link(path, folder / path.name)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, folder / path.name)
