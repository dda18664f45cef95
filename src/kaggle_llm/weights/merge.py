"""Merges a trained adapter into its base, from safetensors to safetensors: the result is an ordinary model folder.

Leaves the base's shards with the merged weights and a trained head, config, tokenizer, chat template, generation
config, and weights.json, which names the parents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.engines.model_kinds import CLASSES, HEAD_NAMES
from kaggle_llm.engines.quantised import read_quantisation
from kaggle_llm.weights.adapter import PREFIX, Adapter, check_trained_on, open_adapter
from kaggle_llm.weights.checkpoint import Checkpoint, is_float
from kaggle_llm.weights.shard_writer import Output, copy_tensor, copy_text_files, row_blocks, write_shards

if TYPE_CHECKING:
    import torch

# Files that a training leaves beside the weights.
NOT_A_MODEL = {"log.jsonl", "loss.png", records.WEIGHTS, records.RECORD}


@dataclass
class MergeSettings:
    into: Literal["original", "dequantised", "nothing"] = "original"
    """original: into the base as it is. dequantised: into the base as qlora's 4 bits round it. nothing: the adapter
    ships unmerged."""
    dtype: Literal["base", "float32", "float16", "bfloat16"] = "base"
    """The dtype of the merged weights; base: as the base stores them."""


@dataclass(frozen=True)
class Target:
    """The model that the adapter was trained on: names and shapes of its parameters, no weights."""

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    """Parameter → the one whose weights it shares."""
    prefix: str
    renamings: list[Any]
    """transformers' rules that turn names in a checkpoint into names in the model."""
    converters: list[Any]
    adapter_tensors: set[str]
    """Tensors that an adapter with this config has on this model."""
    quantised: set[str]
    """Weights that qlora loads in 4 bits."""
    config: dict[str, Any] = field(default_factory=dict)
    """The config's values that differ from the base's."""


def merge_adapter(base: Path, adapter: Path, folder: Path, settings: MergeSettings | None = None) -> None:
    """W + s·B·A for every adapted matrix, computed in fp32 and rounded once; tensors trained whole replace the base's.

    The model is causal, a masked LM, or has a sequence or token head, by the adapter's task_type. A whole model
    (training with method full) is linked. `folder` is complete or absent afterwards. Raises ValueError where the
    adapter does not fit the base (names, shapes, hash), the base is quantised, values are not finite, or weights are
    missing.
    """
    records.make_folder(folder, partial(fill_merged, base, adapter, settings or MergeSettings()))


def fill_merged(base: Path, adapter: Path, settings: MergeSettings, folder: Path) -> None:
    about = {"stage": "merged", "parents": {"base": paths.relative(base), "adapter": paths.relative(adapter)}}
    if not (adapter / records.ADAPTER).is_file():
        link_model(adapter, folder)
        records.write_json(folder / records.WEIGHTS, about)
        return
    if read_quantisation(base):
        raise ValueError(f"base {base} is quantised: an adapter on it ships unmerged, set merge.into=nothing")
    checkpoint, loaded = Checkpoint(base), open_adapter(adapter)
    check_trained_on(loaded, base)
    target = describe_target(base, loaded)
    plan = Plan(checkpoint, loaded, target, settings)
    plan.check()
    write_shards(folder, plan.shards())
    copy_text_files(base, folder)
    write_config(base, folder, plan)
    records.write_json(folder / records.WEIGHTS, {**about, "into": settings.into, "dtype": settings.dtype})


def describe_target(base: Path, adapter: Adapter) -> Target:
    """The model class of the adapter's task_type with the config of `base`, made on the meta device."""
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    task_type = adapter.config.get("task_type")
    classes = {peft_name: (kind, class_name) for kind, (class_name, peft_name) in CLASSES.items()}
    if task_type not in classes:
        raise ValueError(f"adapter {adapter.folder} has the task_type {task_type!r}: {sorted(classes)} can be merged")
    kind, class_name = classes[task_type]
    changes = head_config(adapter.folder) if kind in ("sequence", "token") else {}
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, **changes)
    with torch.device("meta"):
        model = getattr(transformers, class_name).from_config(config)
    conversions = get_model_conversion_mapping(model)
    if kind != "causal":
        changes["architectures"] = [type(model).__name__]
    return Target(
        architecture=type(model).__name__,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(model.all_tied_weights_keys),
        prefix=model.base_model_prefix,
        renamings=[rule for rule in conversions if not isinstance(rule, WeightConverter)],
        converters=[rule for rule in conversions if isinstance(rule, WeightConverter)],
        quantised=list_quantised(model, HEAD_NAMES if changes.get("id2label") else None),
        adapter_tensors=list_adapter_tensors(model, adapter.folder),
        config=changes,
    )


def list_adapter_tensors(model: Any, adapter: Path) -> set[str]:
    """Names of the tensors that PEFT would save of an adapter with this config. Attaches it to `model`."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    config = PeftConfig.from_pretrained(adapter)
    config.base_model_name_or_path = model.name_or_path  # PEFT warns where they differ
    with torch.device("meta"):
        attached = get_peft_model(model, config)
    return {name.removeprefix(PREFIX) for name in get_peft_model_state_dict(attached)}


def head_config(adapter: Path) -> dict[str, Any]:
    """The head's part of the trained model's config.json."""
    if not (adapter / "config.json").is_file():
        raise ValueError(f"adapter {adapter} has a head but no config.json, which says how many labels it has")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(adapter)
    names = ["id2label", "label2id", "problem_type"]
    names += [records.TARGET_SCALES] if hasattr(config, records.TARGET_SCALES) else []
    return {name: getattr(config, name) for name in names} | {"pad_token_id": config.get_text_config().pad_token_id}


def list_quantised(model: Any, unquantised: list[str] | None) -> set[str]:
    """The weights that transformers quantises when it loads the model for qlora."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = get_keys_to_not_convert(model) if unquantised is None else unquantised
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, skipped)
    }


class Plan:
    """Maps each tensor of the merged model to the tensors that it is made of."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, target: Target, settings: MergeSettings) -> None:
        self.checkpoint, self.adapter, self.target, self.settings = checkpoint, adapter, target, settings
        self.names = self._match_names()
        """Name in the model → (name in the checkpoint, name to write)."""
        self.tied = {name: source for name, source in target.tied.items() if not self._differ(name, source)}
        """Target.tied without what the config ties although the checkpoint holds both: transformers reads both."""
        changed = {*adapter.factors, *adapter.whole_tensors}
        stay_tied = adapter.config.get("ensure_weight_tying")
        self.untied = {name: source for name, source in self.tied.items() if {name, source} & changed and not stay_tied}
        """Parameter → source of its weights in the base: shared there, but training changed one of the two."""

    def _match_names(self) -> dict[str, tuple[str, str]]:
        from transformers.core_model_loading import rename_source_key

        target, names = self.target, {}
        meta = dict.fromkeys(target.shapes, True)
        for stored in self.checkpoint.tensors:
            plain, converted = rename_source_key(stored, target.renamings, target.converters)
            name, _ = rename_source_key(stored, target.renamings, target.converters, target.prefix, meta)
            if not converted and name in target.shapes:
                names[name] = (stored, name if plain == stored else stored)
        return names

    def _differ(self, name: str, source: str) -> bool:
        """Whether the checkpoint holds both parameters, with different values."""
        import torch

        if not {name, source} <= set(self.names):
            return False
        first, second = (self.checkpoint.read(self.names[parameter][0]).clone() for parameter in (name, source))
        return not torch.equal(first, second)

    def check(self) -> None:
        """Raises ValueError where the adapter does not fit the base, or the merged model would lack weights."""
        base, adapter, target = self.checkpoint.folder, self.adapter, self.target
        misfit = f"adapter {adapter.folder} does not fit the base model {base}"
        for name, factors in adapter.factors.items():
            self._check_shape(misfit, name, factors.shape)
        for name, tensor in adapter.whole_tensors.items():
            self._check_shape(misfit, name, tuple(tensor.shape))
        stored, expected = adapter.names, target.adapter_tensors
        if stored != expected:
            raise ValueError(
                f"{misfit}: the adapter has {len(stored)} tensors, one on this base has {len(expected)}, "
                f"{len(stored & expected)} of the same name: another base?"
            )
        without = sorted(set(adapter.factors) - set(self.names) - set(self.tied) - set(adapter.whole_tensors))
        if without:
            raise ValueError(f"{misfit}: the checkpoint has no {without[0]} as one tensor; merge with merge_and_unload")
        missing = set(target.shapes) - set(self.names) - set(adapter.whole_tensors) - set(self.tied)
        missing = {name for name in missing if len(target.shapes[name]) > 1}  # vectors start as 0 or 1, as in training
        if missing:
            raise ValueError(
                f"neither the base {base} nor the adapter {adapter.folder} has the weights {sorted(missing)}"
            )
        if self.settings.into == "dequantised" and adapter.about.get("method") != "qlora":
            raise ValueError(
                f"merge.into = dequantised, but adapter {adapter.folder} was not trained with qlora "
                f"({records.WEIGHTS}: {adapter.about.get('method')!r}): set merge.into=original"
            )

    def _check_shape(self, misfit: str, name: str, shape: tuple[int, ...]) -> None:
        expected = self.target.shapes.get(name)
        if expected != shape:
            fault = (
                f"has the shape {list(expected)} there" if expected else f"is no weight of {self.target.architecture}"
            )
            raise ValueError(f"{misfit}: {name}, {list(shape)} in the adapter, {fault}: another base?")
        stored, _ = self.names.get(name, ("", ""))
        if stored and self.checkpoint.tensors[stored].shape != shape:
            other = list(self.checkpoint.tensors[stored].shape)
            raise ValueError(f"{misfit}: {name} has the shape {list(shape)} by the config, {other} in the checkpoint")

    def shards(self) -> dict[str, list[Output]]:
        """The base's shards; new tensors in the last one."""
        by_stored = {stored: (name, written) for name, (stored, written) in self.names.items()}
        shards = {
            file: [output for name in names if (output := self._output(name, by_stored)) is not None]
            for file, names in self.checkpoint.shards.items()
        }
        last = shards[list(shards)[-1]]
        new = sorted(set(self.adapter.whole_tensors) - set(self.names) - set(self.tied))
        last += [self._merged(name, name, name) for name in new]
        last += [self._merged(name, name, source) for name, source in self.untied.items()]
        return {file: outputs for file, outputs in shards.items() if outputs}

    def _output(self, stored: str, by_stored: dict[str, tuple[str, str]]) -> Output | None:
        """The base's tensor, merged or as it is; None where it is not written, or written by `shards`."""
        name, written = by_stored.get(stored, ("", stored))
        if not name:
            is_causal = self.adapter.config.get("task_type") == "CAUSAL_LM"
            return copy_tensor(self.checkpoint, stored, self._dtype) if is_causal else None
        return None if name in self.tied else self._merged(name, written, name)

    def _read_base(self, name: str) -> torch.Tensor:
        """The base's weights that factors are added to."""
        weight = self.checkpoint.read(self.names[name][0])
        if self.settings.into == "dequantised" and name in self.target.quantised:
            return round_to_nf4(weight, self.adapter.about["dtype"])
        return weight

    @property
    def _dtype(self) -> str | None:
        return None if self.settings.dtype == "base" else self.settings.dtype

    def _merged(self, name: str, written: str, source: str) -> Output:
        """Parameter `name` as it was trained whole, or the base's `source` plus factors; `written` in the file."""
        import torch

        whole, factors = self.adapter.whole_tensors.get(name), self.adapter.factors.get(name)
        shape = self.target.shapes[name]
        stored = self._stored_dtype(name)
        dtype = self._dtype if self._dtype and is_float(stored) else stored

        def blocks() -> Iterator[torch.Tensor]:
            weight = self._read_base(source) if whole is None else whole
            for rows in row_blocks(shape):
                block = weight[rows] if shape else weight
                yield (block if factors is None else factors.merge_rows(block, rows)).to(getattr(torch, dtype))

        return Output(written, dtype, shape, blocks)

    def _stored_dtype(self, name: str) -> str:
        """The base's dtype of a tensor; for a new one the dtype of most of its tensors."""
        names = self.names.get(name) or self.names.get(self.tied.get(name, ""))
        if names:
            return self.checkpoint.tensors[names[0]].dtype
        dtypes = [tensor.dtype for tensor in self.checkpoint.tensors.values()]
        return max(sorted(set(dtypes)), key=dtypes.count)


def round_to_nf4(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """The weight in 4 bits and back, as qlora saw it: with the options of training.base_model."""
    import torch
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.to(getattr(torch, dtype)).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state)


def write_config(base: Path, folder: Path, plan: Plan) -> None:
    """The base's config.json with the merged model's head, dtype and weights that are no longer tied."""
    config = records.read_json(base / "config.json")
    changes = dict(plan.target.config)
    if "id2label" in changes:
        changes["id2label"] = {str(key): label for key, label in changes["id2label"].items()}
    if plan.settings.dtype != "base":
        config.pop("torch_dtype", None)
        changes["dtype"] = plan.settings.dtype
    if plan.untied or plan.tied != plan.target.tied:
        changes["tie_word_embeddings"] = False
    records.write_json(folder / "config.json", config | changes)


def link_model(source: Path, folder: Path) -> None:
    """Hard-link (or copy) a whole model's files into `folder`; raises ValueError where `source` holds no model."""
    if not (source / "config.json").is_file() or not list(source.glob("*.safetensors")):
        raise ValueError(
            f"{source} holds neither an adapter ({records.ADAPTER}) nor a model (config.json, *.safetensors)"
        )
    for path in source.iterdir():
        if path.is_file() and path.name not in NOT_A_MODEL:
            records.link_or_copy(path, folder / path.name)
