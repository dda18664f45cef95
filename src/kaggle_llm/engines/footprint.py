"""Estimates what a model takes of a card, memory and operations, without the card and without weights.

The model of a config is built with one layer and with two, and run forward (to train it, backward too) on torch's fake
tensors, which have sizes but no memory: what lives at the same time is counted, and so are the operations. Each further
layer costs what the second one costs. So heads, adapters and architectures are counted as their own code computes them.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.device import CONTEXT_GB
from kaggle_llm.engines.model_kinds import CLASSES, HEAD_NAMES, ModelKind

if TYPE_CHECKING:
    import torch

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SMALLEST_BATCH, LARGEST_BATCH = 256, 2**14  # tokens of auto: a larger batch makes no card faster
FIT_LENGTH, FIT_KEPT = 512, 0.25  # of auto's texts: tokens, and the share that is multiplied by the vocabulary
RESERVE = 0.05  # of what torch allocates: blocks that lie between others, assumed
UNMASKED = "unmasked"
UNKNOWN_LAYERS = "its config names no number of layers"


@dataclass(frozen=True)
class Batch:
    """tokens computed at a time, in texts of `length`, of which `kept` tokens are multiplied by the vocabulary."""

    tokens: int
    length: int
    kept: int = 1

    @property
    def rows(self) -> int:
        return max(1, self.tokens // self.length)


@dataclass(frozen=True)
class Trace:
    """Counts of one model and one batch."""

    parameters: float
    """Weights of the base model."""
    linear: float
    """Weights that qlora quantises."""
    largest: float
    """Weights of the largest matrix."""
    trained: float
    """Weights with a gradient."""
    activations: float
    """Largest number of bytes that live beside weights, gradients and optimizer, until the gradient has passed all
    layers: each layer adds the same."""
    after: float
    """The largest number after that, when the embeddings get their gradient."""
    forward: float
    """Floating-point operations of the forward pass."""
    operations: float
    """Floating-point operations of forward and backward."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one card, without CUDA itself."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Estimate:
    memory: Memory
    operations: float
    """Floating-point operations of a token."""
    parameters: float


Prepare = Callable[[Any, Any], Any]  # a model on the meta device, and the counter → the model that is trained


def estimate_inference(config: Any, kind: ModelKind | None, dtype: str, batch: Batch, new: int = 1) -> Estimate:
    """Estimate of one forward pass; with new > 1 generated tokens the batch's keys and values are kept beside it.

    kind None: an encoder of sentences.
    """
    short, long = (trace(config, kind, dtype, batch, layers) for layers in (1, 2))
    full, exact = extrapolate(short, long, count_layers(config)), count_parameters(config, kind)
    cache = batch.tokens * cache_bytes(config, dtype) if new > 1 else 0.0
    memory = Memory(exact * BYTES[dtype], 0.0, 0.0, 0.0, full.activations + cache)
    return Estimate(memory, full.forward / (batch.rows * batch.length), exact)


def usable_bytes(free: float) -> float:
    """What torch can allocate of `free` GiB of a card, beside CUDA and what lies between its blocks."""
    return (free - CONTEXT_GB) * GIB / (1 + RESERVE)


def measure_growth(estimate: Callable[[Batch], Estimate], config: Any) -> tuple[float, float]:
    """(bytes without any token, bytes of each token): between two batches memory grows by the same for every token."""
    length = min(FIT_LENGTH, getattr(config.get_text_config(), "max_position_embeddings", FIT_LENGTH))
    small, large = (
        estimate(Batch(rows * length, length, int(rows * length * FIT_KEPT))).memory.total for rows in (1, 2)
    )
    each = max((large - small) / length, 1.0)
    return small - length * each, each


def round_batch(tokens: float) -> int:
    """The largest power of two of them, within SMALLEST_BATCH and LARGEST_BATCH."""
    return int(2 ** math.floor(math.log2(min(max(tokens, SMALLEST_BATCH), LARGEST_BATCH))))


def fit_inference(config: Any, kind: ModelKind | None, dtype: str, room: float, weights: float | None = None) -> int:
    """Tokens of a forward pass within `room` bytes, as round_batch gives them; a cache of their keys and values too.

    weights: bytes that the model's take, where they are quantised.
    """
    new = 2 if kind == "causal" else 1
    fixed, each = measure_growth(lambda batch: estimate_inference(config, kind, dtype, batch, new), config)
    if weights is not None:
        fixed += weights - count_parameters(config, kind) * BYTES[dtype]
    return round_batch((room - fixed) / each)


def cache_bytes(config: Any, dtype: str) -> float:
    """Keys and values of one token: 2 · layers · key/value heads · head size · bytes."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return float(2 * count_layers(config) * heads * size * BYTES[dtype])


def read_shape(folder: Path) -> Any:
    """The transformers config in a folder; its weights need not be there."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def count_layers(config: Any) -> int:
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not layers:
        raise ValueError(f"model_type = {config.model_type}: {UNKNOWN_LAYERS}")
    return int(layers)


def count_parameters(config: Any, kind: ModelKind | None) -> int:
    """Parameters of the whole model, tied ones once."""
    return sum(weight.numel() for weight in build_empty(config, kind, "float32").parameters())


def extrapolate(short: Trace, long: Trace, layers: int) -> Trace:
    """short, long: of a model with one layer and with two."""
    first, second = asdict(short), asdict(long)
    return Trace(**{name: first[name] + (layers - 1) * (second[name] - first[name]) for name in first})


def build_empty(config: Any, kind: ModelKind | None, dtype: str) -> Any:
    """The model of a config on the meta device."""
    import torch
    import transformers

    maker = getattr(transformers, CLASSES[kind][0] if kind else "AutoModel")
    transformers.AttentionInterface.register(UNMASKED, attend_unmasked)
    with torch.device("meta"):
        return maker.from_config(copy.deepcopy(config), dtype=getattr(torch, dtype), attn_implementation=UNMASKED)


def attend_unmasked(*given: Any, attention_mask: Any = None, **options: Any) -> Any:
    """transformers' attention without padding: on fake tensors it would make a mask, as nobody sees that all are ones.

    given: module, query, key, value, perhaps a mask.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*given[:4], None, **options)


def shorten(config: Any, layers: int) -> Any:
    """The config with its first layers only."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    text.pad_token_id = text.pad_token_id or 0  # decoders with a head look for the last token before it
    if vars(text).get("layer_types"):
        text.layer_types = list(text.layer_types)[:layers]
    return short


def trace(
    config: Any,
    kind: ModelKind | None,
    dtype: str,
    batch: Batch,
    layers: int,
    prepare: Prepare | None = None,
    weights: str | None = None,
) -> Trace:
    """One forward pass of the first layers; with `prepare`, which makes weights trainable, also the backward pass.

    weights: their dtype, where it is not that of the computation. Raises ValueError where the model's own code asks for
    a value, as a mixture of experts may do, or for a card.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    stored = weights or ("float32" if dtype == "float32" else "bfloat16")  # some of a CPU's kernels refuse float16
    model, counter, is_training = build_empty(shorten(config, layers), kind, stored), make_counter(), False
    base, linear = list(model.parameters()), list_quantised(model, kind)
    if prepare:
        model, is_training = prepare(model, counter), True
    fake = FakeTensorMode()
    move_to_fake(model, fake)
    model.train(is_training)
    try:
        with fake, half_precision(dtype, is_training):
            forward, operations = run_batch(model, kind, batch, is_training, counter)
    except (RuntimeError, TypeError, AttributeError, LookupError) as error:  # torch's own are RuntimeErrors
        reason = f"its code does not run on tensors without values ({type(error).__name__})"
        raise ValueError(f"model_type = {config.model_type}: not computed, {reason}") from error
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad) if is_training else 0
    sizes = [weight.numel() for weight in base]
    until, after = (counter.earlier, counter.peak) if counter.earlier else (counter.peak, 0)
    return Trace(sum(sizes), sum(linear), max(linear, default=0), trained, until, after, forward, operations)


def list_quantised(model: Any, kind: ModelKind | None) -> list[int]:
    """Sizes of the matrices that qlora quantises: all linear layers but the vocabulary's and a new head."""
    import torch

    output = model.get_output_embeddings() if kind in ("causal", "masked") else None
    return [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output and name.split(".")[-1] not in HEAD_NAMES
    ]


def move_to_fake(model: Any, fake: Any) -> None:
    """Replace every weight and buffer by a fake one on the CPU, tied ones by the same."""
    import torch

    made: dict[int, Any] = {}

    def replace_tensor(tensor: torch.Tensor) -> Any:
        if id(tensor) not in made:
            with fake:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_weight = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: replace_tensor(tensor) for name, tensor in tensors.items() if tensor is not None})


@contextmanager
def half_precision(dtype: str, is_training: bool) -> Iterator[None]:
    """Autocast, in which the trainer computes; an engine's weights are in its dtype already."""
    import torch

    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if is_training and dtype != "float32" else nullcontext()
    with autocast:
        yield


def run_batch(model: Any, kind: ModelKind | None, batch: Batch, is_training: bool, counter: Any) -> tuple[float, float]:
    """Operations of the forward pass, and of it with the backward pass. Gradients are freed as soon as they are made.

    counter: counts the bytes; it stands inside the other, which takes products apart.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros((batch.rows, batch.length), dtype=torch.long)
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": None if kind == "causal" else torch.ones_like(ids)}
    if kind == "causal":
        kept = max(1, min(batch.kept // batch.rows, batch.length))
        options |= {"logits_to_keep": kept, "use_cache": False}
    for weight in model.parameters():
        if weight.requires_grad and is_training:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    counts = FlopCounterMode(display=False, custom_mapping=attention_operations())
    with counts, counter, nullcontext() if is_training else torch.no_grad():
        out = model(**options)
        logits = out[0].float()
        forward = counts.get_total_flops()
        if is_training:
            flat = logits.flatten(0, -2)
            with torch.autocast("cpu", enabled=False):
                loss = torch.nn.functional.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.long))
            del out, logits, flat
            loss.backward()
    return float(forward), float(counts.get_total_flops())


def attention_operations() -> dict[Any, Any]:
    """torch's counter does not know the CPU's fused attention; half of the products where it is causal."""
    import torch

    def count(query: Any, key: Any, is_causal: bool) -> float:
        return 4 * query[0] * query[1] * query[2] * key[2] * query[3] * (0.5 if is_causal else 1)

    def forward(query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, **_: Any) -> float:
        return count(query, key, is_causal)

    def backward(*args: Any, **_: Any) -> float:
        return 2.5 * count(args[1], args[2], args[7])  # the products of the forward pass again, and four more

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def make_counter() -> Any:
    """A dispatch mode whose `peak` is the largest number of bytes of tensors made inside it that live together."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live = self.peak = self.earlier = 0
            self.known: weakref.WeakSet[Any] = weakref.WeakSet()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for tensor in args:  # a view of a weight is no new memory
                if isinstance(tensor, Tensor):
                    self.known.add(tensor.untyped_storage())
            out = func(*args, **(kwargs or {}))
            tree_map_only(Tensor, self.count, out)
            return out

        def count(self, tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self.live += (size := storage.nbytes())
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, size)

        def free(self, size: int) -> None:
            self.live -= size

        def mark(self, _: object) -> None:
            """From here on `peak` is counted from zero; the one until now is `earlier`."""
            self.earlier, self.peak = max(self.earlier, self.peak), self.live

    return LiveBytes()
