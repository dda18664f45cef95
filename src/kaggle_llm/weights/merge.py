"""An adapter merged into its base model, as an ordinary model folder."""

from __future__ import annotations

from pathlib import Path

from kaggle_llm.prompts import load_tokenizer


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """W + (alpha/r)·B·A for every adapted matrix, by PEFT, in fp32; with tokenizer, chat template and configs.

    Raises ValueError where the adapter names a module or a shape that the base has not.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    try:
        attached = PeftModel.from_pretrained(model, adapter)
    except RuntimeError as error:  # torch's message for shapes that differ
        raise ValueError(f"adapter {adapter} does not fit the base model {base}: {error}") from error
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    places = set(get_peft_model_state_dict(attached))
    if stored != places:
        raise ValueError(
            f"adapter {adapter} has {len(stored)} tensors, base {base} has {len(places)} places for them, "
            f"{len(stored & places)} of the same name: another base?"
        )
    attached.merge_and_unload(safe_merge=True).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
