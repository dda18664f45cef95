"""GPT-2 from token ids to logits, loss and text, to be read from top to bottom.

Parameters have the names and shapes of transformers' GPT2LMHeadModel, so its folders load here, and ours load there.
Shapes in comments: B sequences of T tokens, C features, H heads of D = C / H features each, V tokens in the vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

Cache = list[tuple[Tensor, Tensor]]  # per layer the keys and the values of all tokens so far, each [B, H, T, D]
IGNORED = -100  # a label that the loss leaves out


@dataclass
class GPT2Settings:
    """The keys of transformers' config.json."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd = {self.n_embd} is no multiple of n_head = {self.n_head}: heads share the features"
            )


class Projection(nn.Module):
    """y = x W + b. GPT-2 keeps W as [in, out], the transpose of what nn.Linear keeps."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_in, size_out).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(size_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Every token compares its query with the keys of all tokens up to itself and averages their values by that."""

    def __init__(self, settings: GPT2Settings) -> None:
        super().__init__()
        self.n_head = settings.n_head
        self.c_attn = Projection(settings.n_embd, 3 * settings.n_embd)  # queries, keys and values in one product
        self.c_proj = Projection(settings.n_embd, settings.n_embd)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, features = x.shape
        query, key, value = self.c_attn(x).split(features, dim=2)  # [B, T, C] each
        query, key, value = (self.split_heads(part) for part in (query, key, value))  # [B, H, T, D]
        if past is not None:  # the keys and values of earlier tokens, computed in earlier calls
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        weight = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # [B, H, T, T + earlier]
        weight = weight.masked_fill(~causal_mask(length, key.shape[2], x.device), -math.inf).softmax(dim=3)
        mixed = weight @ value  # [B, H, T, D]
        # transpose changes only the strides; view needs contiguous memory, so the tensor is copied in between.
        mixed = mixed.transpose(1, 2).contiguous().view(batch, length, features)  # heads side by side: [B, T, C]
        return self.c_proj(mixed), (key, value)

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, T, C] → [B, H, T, D]. A head has D neighbouring features: C is viewed as (H, D), then H moves before T.
        Viewing it as (B, H, T, D) at once would mix tokens with features."""
        batch, length, features = x.shape
        return x.view(batch, length, self.n_head, features // self.n_head).transpose(1, 2)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """[queries, keys], True where a query may attend. The queries are the last tokens of the keys: query i is at
    position keys - queries + i and attends to all keys up to there."""
    position = torch.arange(keys - queries, keys, device=device)
    return torch.arange(keys, device=device)[None, :] <= position[:, None]


class MLP(nn.Module):
    """Two layers on each token by itself: to four times the width, a GELU, and back."""

    def __init__(self, settings: GPT2Settings) -> None:
        super().__init__()
        self.c_fc = Projection(settings.n_embd, 4 * settings.n_embd)
        self.c_proj = Projection(4 * settings.n_embd, settings.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): both add to the residual stream x."""

    def __init__(self, settings: GPT2Settings) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(settings.n_embd, eps=settings.layer_norm_epsilon)
        self.attn = Attention(settings)
        self.ln_2 = nn.LayerNorm(settings.n_embd, eps=settings.layer_norm_epsilon)
        self.mlp = MLP(settings)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.attn(self.ln_1(x), past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), present


class GPT2(nn.Module):
    """Embeddings, blocks, a final norm, and the token embeddings again as the head."""

    def __init__(self, settings: GPT2Settings) -> None:
        super().__init__()
        self.settings = settings
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(settings.vocab_size, settings.n_embd),
                "wpe": nn.Embedding(settings.n_positions, settings.n_embd),
                "h": nn.ModuleList(Block(settings) for _ in range(settings.n_layer)),
                "ln_f": nn.LayerNorm(settings.n_embd, eps=settings.layer_norm_epsilon),
            }
        )
        nn.init.normal_(self.transformer["wte"].weight, std=0.02)
        nn.init.normal_(self.transformer["wpe"].weight, std=0.01)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids [B, T] → logits [B, T, V]: row t predicts token t + 1.

        cache: keys and values of the tokens before these, from earlier calls; this call adds its own. Start with [].
        Raises ValueError for more tokens than there are positions.
        """
        before = cache[0][0].shape[2] if cache else 0
        if before + ids.shape[1] > self.settings.n_positions:
            raise ValueError(
                f"{before + ids.shape[1]} tokens, but n_positions = {self.settings.n_positions}: cut the text"
            )
        position = torch.arange(before, before + ids.shape[1], device=ids.device)
        x = self.transformer["wte"](ids) + self.transformer["wpe"](position)  # [B, T, C] + [T, C]
        presents: Cache = []
        for layer, block in enumerate(self.transformer["h"]):
            x, present = block(x, cache[layer] if cache else None)
            presents.append(present)
        if cache is not None:
            cache[:] = presents
        # The head is tied: the embedding matrix also turns features into the logits of the tokens.
        return self.transformer["ln_f"](x) @ self.transformer["wte"].weight.T

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the next token in nats. labels [B, T]: ids, or IGNORED for tokens without a loss.

        Row t of the logits predicts token t + 1, so the labels are shifted by one: without the shift the model would
        learn to copy its input.
        """
        logits = self(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    @torch.inference_mode()
    def generate(
        self,
        ids: Tensor,
        tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """ids [B, T] continued to [B, T + tokens]. temperature 0: the likeliest token; top_k: of the k likeliest.

        With the cache a step computes one token; without it all tokens again, with the same result.
        """
        cache: Cache | None = [] if cached else None
        new = ids
        for _ in range(tokens):
            logits = self(new if cached else ids, cache)[:, -1]  # [B, V]
            chosen = choose_token(logits, temperature, top_k, generator)
            ids, new = torch.cat((ids, chosen), dim=1), chosen
        return ids


def choose_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Logits [B, V] → one token for each sequence, [B, 1]."""
    if temperature == 0:
        return logits.argmax(dim=1, keepdim=True)
    logits = logits / temperature  # above 1 flatter, below 1 sharper
    if top_k is not None:
        worst = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, -math.inf)
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)


def fit(
    model: GPT2,
    examples: Sequence[tuple[Sequence[int], Sequence[int]]],
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train with AdamW on (prompt, completion) pairs of token ids; only the completion has a loss.

    The learning rate rises during the first tenth of the steps, then falls to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95))
    steps = max(epochs * math.ceil(len(examples) / batch), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / (steps / 10), (steps - n) / steps, 1)
    )
    bar = tqdm(range(epochs), "epochs", mininterval=5.0)
    for _ in bar:
        for chosen in torch.randperm(len(examples), generator=generator).split(batch):
            ids, labels = pad_examples([examples[i] for i in chosen.tolist()])
            loss = model.loss(ids, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}")


def pad_examples(examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, T]. Padding comes last, where no token attends to it, and has no loss."""
    length = max(len(prompt) + len(completion) for prompt, completion in examples)
    ids, labels = torch.zeros(len(examples), length, dtype=torch.long), torch.full((len(examples), length), IGNORED)
    for row, (prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


def save_gpt2(model: GPT2, folder: Path) -> None:
    """config.json and model.safetensors as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **asdict(model.settings)}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})


def load_gpt2(folder: Path) -> GPT2:
    """Load a folder of `save_gpt2` or transformers; raises KeyError or RuntimeError where it is no GPT-2."""
    config = json.loads((folder / "config.json").read_text())
    model = GPT2(GPT2Settings(**{name: config[name] for name in asdict(GPT2Settings())}))
    # Files of transformers may also hold the tied head, and old ones the mask: only our names are read.
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model
