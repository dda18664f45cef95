"""Quantises one model with llm-compressor: `python quantize_worker.py job.json`, by the python of .venv-quantise.

A separate script: llm-compressor's pins conflict with vLLM's, so nothing of this package is imported here.
Leaves in job["output"] the weights in compressed-tensors' format and config.json; in job["versions"] a JSON file with
the versions of the libraries.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

SHOWN_LOG_LEVELS = ("WARNING", "ERROR", "CRITICAL")
REPORTED_PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main(job: dict[str, Any]) -> None:
    import transformers
    from llmcompressor import oneshot

    prepare_library()
    transformers.set_seed(job["seed"])
    (architecture, *_) = transformers.AutoConfig.from_pretrained(job["model"], local_files_only=True).architectures
    model_class = getattr(transformers, architecture)  # with its head, where it has one
    model = model_class.from_pretrained(job["model"], dtype="auto", local_files_only=True)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:  # torch's fused attention has no caps
        model.set_attn_implementation("eager")
    oneshot(
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(job["model"], local_files_only=True),
        dataset=make_loader(job["prompts"]),
        recipe=make_recipe(job),
        num_calibration_samples=len(job["prompts"]),
    )
    model.save_pretrained(job["output"], save_compressed=True)
    Path(job["versions"]).write_text(
        json.dumps({name: metadata.version(name) for name in REPORTED_PACKAGES}), encoding="utf-8"
    )


def prepare_library() -> None:
    """Silence the log line of every matrix, and make AWQ run on a machine without a GPU."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, format="{level}: {message}", filter=lambda record: record["level"].name in SHOWN_LOG_LEVELS)
    if not torch.accelerator.is_available():
        # AWQ pins its cache in memory for the GPU, and fails where there is none (llmcompressor 0.14.0.1).
        IntermediatesCache.pin_memory = lambda *_: None


def make_recipe(job: dict[str, Any]) -> list[Any]:
    """GPTQ with symmetric and AWQ with asymmetric 4-bit groups: vLLM's Marlin kernels take both on a T4.

    SmoothQuant: int8 weights by GPTQ, one scale a row; int8 activations, one scale a token, computed at run time.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    ignore = job["ignore"]
    if job["scheme"] == "smoothquant":
        # 0.8 is the strength that llm-compressor's own W8A8 recipes use for Llama-like models.
        return [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(scheme="W8A8", ignore=ignore)]
    groups = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "strategy": "group",
            "group_size": job["group_size"],
            "symmetric": job["scheme"] == "gptq",
        },
    }
    modifier = {"config_groups": {"group_0": groups}, "ignore": ignore}
    if job["scheme"] == "gptq":
        return [GPTQModifier(**modifier)]
    return [AWQModifier(duo_scaling="both"), QuantizationModifier(**modifier)]


def make_loader(prompts: list[list[int]]) -> Any:
    """Batches of one prompt: padding would be part of the calibration."""
    import torch
    from torch.utils.data import DataLoader

    rows = [torch.tensor([ids]) for ids in prompts]
    return DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=None)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
