"""Loads a base model for training (with an adapter, quantised, or all weights trainable) and saves what was trained.

Leaves adapter_config.json and adapter_model.safetensors, or with method full a whole model folder; both with the
trained model's config.json, which holds the size of a head.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.device import choose_placement
from kaggle_llm.engines.attention import (
    SEGMENTS,
    inner_model,
    keep_caps,
    prepare_device,
    register_segments,
    takes_segments,
)
from kaggle_llm.engines.model_kinds import CLASSES, HEAD_NAMES, ModelKind
from kaggle_llm.engines.onednn import use_onednn
from kaggle_llm.engines.quantised import adaptable, read_quantisation, rounds_activations
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.trial import pack_where_possible
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, resolve_training

if TYPE_CHECKING:
    import torch


def load_trainable(
    base: Path, kind: ModelKind, lora: LoraSettings, training: TrainingSettings, seed: int, **config: Any
) -> Any:
    """The model of `base`, trainable as `lora` says.

    config: changes to its config, such as num_labels or attn_implementation; that of packed rows is taken only where
    they give what single prompts give. target_scales, which transformers does not know, is kept in it. A new head is
    initialised with `seed`.
    Raises ValueError where the device cannot compute in `training.dtype`.
    """
    import transformers

    training = resolve_training(training)
    is_packed = config.get("attn_implementation") == SEGMENTS
    if is_packed:
        del config["attn_implementation"]
    scales = config.pop(records.TARGET_SCALES, None)
    config |= make_loading_options(lora, training, seed, HEAD_NAMES if kind in ("sequence", "token") else None)
    model_class = getattr(transformers, CLASSES[kind][0])
    check_class(base, model_class)
    with adaptable(base) as options:
        config |= options | choose_placement()
        model, info = model_class.from_pretrained(base, local_files_only=True, output_loading_info=True, **config)
    keep_caps(model)
    if scales is not None:
        model.config.update({records.TARGET_SCALES: scales})
    if is_packed:
        pack_rows(model, base, training.dtype)
    if kind == "sequence" and model.config.get_text_config().pad_token_id is None:  # decoders pool before the padding
        model.config.get_text_config().pad_token_id = load_tokenizer(base).pad_token_id or 0
    if lora.method != "full":
        model = attach_adapter(model, kind, lora, find_random_modules(model, info["missing_keys"], base, lora))
    return use_onednn(model)


def check_class(base: Path, model_class: Any) -> None:
    """Raises ValueError where transformers has no such class, such as one with a head, for the type of the base."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True)
    if type(config) not in model_class._model_mapping:
        wanted = model_class.__name__.removeprefix("AutoModelFor")
        raise ValueError(
            f"model {base} is a {config.model_type}, for which transformers has no {wanted}: take another model, or a "
            f"choice in the head's place (exp004_judge)"
        )


def pack_rows(model: Any, base: Path, dtype: str) -> None:
    """Try out packed rows in the first process, where the model was loaded; the others do as it does."""
    packs = processes.share(pack_where_possible(model, dtype) if processes.is_first() else None)
    if packs and not processes.is_first():
        model.set_attn_implementation(register_segments())
    if not packs and processes.is_first():
        print(f"{base}: its layers cannot be packed, each prompt is trained by itself", flush=True)


def unpack_beyond_window(model: Any, longest: int) -> None:
    """Stop packing where examples exceed the model's attention window, which packed rows cannot apply."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and longest > window and takes_segments(model):
        inner_model(model).set_attn_implementation("sdpa")
        print(f"examples exceed the attention window of {window} tokens: each prompt is trained by itself", flush=True)


def check_quantised(base: Path, lora: LoraSettings) -> None:
    """Raises ValueError for a quantised base that `lora` cannot be trained on, and for qlora under FSDP."""
    if lora.method == "qlora" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError(
            "lora.method = qlora under FSDP, which cannot shard its 4-bit weights: launch with launch/ddp.yaml, or set "
            "lora.method=lora"
        )
    method = read_quantisation(base).get("quant_method")
    if method is None:
        return
    if lora.method not in ("lora", "rslora"):
        raise ValueError(f"base {base} is quantised ({method}): set lora.method=lora or rslora, not {lora.method}")
    if rounds_activations(base):
        raise ValueError(
            f"base {base} rounds its activations, which stops gradients: train on GPTQ or AWQ weights, or "
            f"on the model that it was quantised from"
        )


def make_loading_options(
    lora: LoraSettings, training: TrainingSettings, seed: int, unquantised: Sequence[str] | None = None
) -> dict[str, Any]:
    """Precision options for from_pretrained; also seeds the initialisation of a new head.

    unquantised: modules that qlora does not quantise.
    """
    import torch
    import transformers

    prepare_device()
    transformers.utils.logging.disable_progress_bar()  # "Loading weights": noise in every log
    transformers.set_seed(seed)
    check_precision(training.dtype)
    # Trained weights are fp32, under autocast in half precision; frozen ones may be stored in half precision.
    dtype = torch.float32 if lora.method == "full" else getattr(torch, training.dtype)
    if lora.method != "qlora":
        return {"dtype": dtype}
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantised,
    )
    return {"dtype": dtype, "quantization_config": quantised}


def find_random_modules(model: Any, missing: Iterable[str], base: Path, lora: LoraSettings) -> list[str]:
    """Randomly initialised modules beside the head, whose matrices `base` lacks: DeBERTa's pooler, an MLM head.

    missing: parameters that `base` lacks. Raises ValueError for qlora, which would train these modules in 4 bits.
    """
    modules = {key.rpartition(".")[0] for key in missing if model.get_parameter(key).ndim > 1}
    random = sorted(name for name in modules if not set(HEAD_NAMES) & set(name.split(".")))
    if random and lora.method == "qlora":
        raise ValueError(f"model {base} has no weights for {random}, and qlora cannot train them: set lora.method=lora")
    return random


def attach_adapter(model: Any, kind: ModelKind, lora: LoraSettings, random: Sequence[str] = ()) -> Any:
    """A PeftModel; a head and the `random` modules are trained whole and saved with the adapter.

    All trained weights are float32: in bfloat16 a step moves few of them, and float16's loss scaler refuses them.
    """
    from peft import LoraConfig, get_peft_model

    # If they are not named here, PEFT puts LoRA into a token head and then cannot save the head.
    whole = [*random, *(HEAD_NAMES if kind in ("sequence", "token") else [])]
    adapter = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_dora=lora.method == "dora",
        use_rslora=lora.method == "rslora",
        task_type=CLASSES[kind][1],
        modules_to_save=whole or None,
    )
    # bitsandbytes packs 4-bit weights for the CPU at their first use in eval mode (mining, an evaluation), and packed
    # weights silently stop gradients.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    adapted = get_peft_model(model, adapter)
    adapted.create_or_update_model_card = lambda _: None  # an empty one, in every checkpoint
    for _, weight in trainable_parameters(adapted):  # PEFT leaves whole modules in the base's half precision
        weight.data = weight.data.float()
    return adapted


def save_trained(model: Any, base: Path, folder: Path) -> None:
    """Save the adapter or all weights, with the tokenizer of `base`. No path of this machine is written."""
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = paths.relative(base)
        model.get_base_model().config.save_pretrained(folder)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def check_precision(dtype: str) -> None:
    """Raises ValueError with the way out where this machine cannot train in `dtype`."""
    import torch

    if torch.cuda.is_available():
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
            name = torch.cuda.get_device_name()
            raise ValueError(f"training.dtype = bfloat16, but {name} has none: set training.dtype=float16")
    elif dtype == "float16":
        raise ValueError("training.dtype = float16 needs a GPU: set training.dtype=float32 on a CPU")


def trainable_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
