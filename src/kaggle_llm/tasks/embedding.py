"""Trains a bi-encoder for retrieval with sentence-transformers' trainer.

The loss is cached multiple negatives ranking (GradCache): softmax over the cosines of a query with its document, the
other documents of the batch, and hard negatives mined with the weights at the start of an epoch. No right document of
a query in the batch is in it twice or as a negative. One run of the trainer spans all epochs, and mined negatives are
kept beside the checkpoints, so that a killed training resumes with the same negatives and learning rate. Leaves a whole
sentence-transformers folder (an adapter is merged in fp32) that Engine.embed() reads; and log.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import processes, records
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.model_kinds import ModelKind
from kaggle_llm.engines.onednn import use_onednn
from kaggle_llm.engines.texts import encode_texts
from kaggle_llm.retrieval.negatives import MinedPair, NegativeSettings, mine_negatives, rank_with_right
from kaggle_llm.tasks.embedding_teacher import NO_TEACHER, Taught, label_batch, make_taught_loss
from kaggle_llm.training.base_model import attach_adapter, make_loading_options, trainable_parameters
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.padding import pad_right
from kaggle_llm.training.plan import keep_within
from kaggle_llm.training.trainer import Job, describe_job, make_arguments, on_device, run_trainer, use_one_gpu

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

CHECKPOINT_WEIGHTS = "trained.safetensors"


@dataclass
class EmbeddingSettings:
    pooling: Literal["model", "mean", "last"] = "model"
    """model: as in the base's modules.json. mean: over all tokens, for encoders. last: last token's state, for causal
    models."""
    temperature: float = 0.05
    """Cosines are divided by it: the lower, the more the hardest negatives count."""
    max_tokens: int = 256
    """Tokens of a query or document; set it as in retrieval."""
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    refresh: bool = True
    """Mine hard negatives again at the start of each epoch; false: once, with the base model."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}: must be more than 0")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens}: must be 1 or more")


@dataclass(frozen=True)
class Corpus:
    """Texts by id, as in prediction (prefixes such as "query: " included), and the right documents."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    right: Mapping[str, Sequence[str]]
    """Query id → ids of its right documents."""

    def right_texts(self, query: str) -> list[str]:
        return [self.documents[item] for item in self.right[query]]


@dataclass(frozen=True)
class Batch:
    """Training pairs of one process in one step."""

    epoch: int
    pairs: list[int]
    """Indices of the pairs."""


@on_device
def train_embedder(
    settings: EmbeddingSettings,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    truth: pl.DataFrame,
    job: Job,
    taught: Taught = NO_TEACHER,
    folder: Path | None = None,
) -> None:
    """Train on every right document of every query in `truth` and save the whole model into `folder`, or job.folder.

    queries, documents: texts by id; truth: id, items; taught: a reranker's scores of the documents, learned
    beside the right ones. `training.tokens` counts queries and right documents. Each of several processes contrasts its
    own share of `training.batch`. Raises ValueError for ids without a text, a base that
    does not fit `pooling`, and where no pair fits into the budget.
    """
    job = replace(job, folder=folder or job.folder)
    right = {row: list(dict.fromkeys(items)) for row, items in truth.select("id", "items").iter_rows()}
    corpus = Corpus(queries, documents, right)
    check_corpus(corpus)
    load = partial(load_embedder, settings)
    model = load(job)
    pairs = choose_pairs(corpus, model.tokenizer, settings, job.training.tokens)
    about = {"code": hash_code(__name__), "embedding": asdict(settings), "pairs": pairs, "right": right}
    texts = {"queries": dict(queries), "documents": dict(documents)}
    checkpoints = Checkpoints(job.folder, describe_job(job, about | texts | {"taught": asdict(taught)}))
    world = processes.world()
    batches = plan_batches(pairs, corpus, max(1, job.training.batch // world), job.training.epochs, job.seed, world)
    mine = partial(mine_epoch, model, corpus, pairs, settings, job)
    negatives = HardNegatives(mine, checkpoints.folder, settings.refresh)
    trainer = make_planned_trainer(
        model,
        make_arguments(job, checkpoints, len(batches) // world) | {"ddp_find_unused_parameters": True},  # a pooler
        make_loss(model, settings, job.training.part_tokens, taught),
        batches,
        lambda model, batch: encode_batch(model, batch, pairs, corpus, negatives, settings.max_tokens, taught),
    )
    run_trainer(trainer, job, checkpoints, lambda trained, *_: save_whole(trained, load, job))


def check_corpus(corpus: Corpus) -> None:
    """Raises ValueError naming the truth's queries and documents that have no text."""
    queries = [query for query in corpus.right if query not in corpus.queries]
    documents = [item for items in corpus.right.values() for item in items if item not in corpus.documents]
    for name, ids in (("queries", queries), ("documents", documents)):
        if ids:
            raise ValueError(f"truth names {len(ids)} {name} without a text, first {ids[:3]}")


def load_embedder(settings: EmbeddingSettings, job: Job, device: str | None = None) -> Any:
    """A SentenceTransformer of job.base, trainable as job.lora says.

    Raises ValueError where pooling = model and the base is no sentence-transformers folder, and where max_tokens is
    more than the model's context.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    options = make_loading_options(job.lora, job.training, job.seed)
    if settings.pooling == "model":
        if not (job.base / "modules.json").is_file():
            raise ValueError(f"{job.base} has no modules.json: set embedding.pooling to mean, or last if it is causal")
        model = SentenceTransformer(str(job.base), device=device, model_kwargs=options, local_files_only=True)
    else:
        transformer = Transformer(str(job.base), model_kwargs=options)
        mode = "mean" if settings.pooling == "mean" else "lasttoken"
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
        model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)
    finish_loading(model, "masked", settings.max_tokens, job)  # masked: an adapter without a head
    return model


def finish_loading(model: Any, kind: ModelKind, max_tokens: int, job: Job) -> None:
    """Limit the length of texts and attach the adapter to a SentenceTransformer or CrossEncoder."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_tokens > context:
        raise ValueError(f"max_tokens = {max_tokens}, but {job.base} reads at most {context}")
    model.max_seq_length = max_tokens
    if job.lora.method != "full":
        model[0].model = attach_adapter(model[0].model, kind, job.lora)
    use_onednn(model)


def save_whole(model: Any, load: Callable[[Job, str], Any], job: Job) -> None:
    """Write the trained SentenceTransformer or CrossEncoder with its tokenizer into job.folder.

    An adapter is merged into the base's weights in fp32, also where it was trained in NF4 or bfloat16.
    load: (job, device) → the untrained model with its adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if not processes.is_first():
        return
    if job.lora.method != "full":
        method = "lora" if job.lora.method == "qlora" else job.lora.method
        lora, training = replace(job.lora, method=method), replace(job.training, dtype="float32")
        adapter = get_peft_model_state_dict(model[0].model)
        model = load(replace(job, lora=lora, training=training), "cpu")
        set_peft_model_state_dict(model[0].model, adapter)
        model[0].model = model[0].model.merge_and_unload(safe_merge=True)
    model.save_pretrained(str(job.folder), create_model_card=False)


def choose_pairs(
    corpus: Corpus, tokenizer: Any, settings: EmbeddingSettings, budget: int | None
) -> Sequence[tuple[str, str]]:
    """(query, right document) ids of the first pairs within the budget of tokens; prints how many texts are cut."""
    pairs = [(query, item) for query, items in corpus.right.items() for item in items]
    one_more = settings.max_tokens + 1  # a text of so many tokens is cut
    columns = [corpus.queries[query] for query, _ in pairs], [corpus.documents[item] for _, item in pairs]
    lengths = [[len(ids) for ids in encode_texts(tokenizer, texts, one_more)] for texts in columns]
    sums = [sum(min(length, settings.max_tokens) for length in pair) for pair in zip(*lengths, strict=True)]
    kept = keep_within(pairs, sums, budget, "pairs")
    if processes.is_first():
        cut = sum(length == one_more for column in lengths for length in column[: len(kept)])
        print(f"training on {len(kept)} of {len(pairs)} pairs, {sum(sums[: len(kept)])} tokens", flush=True)
        print(f"{cut} of their texts are cut at embedding.max_tokens = {settings.max_tokens}", flush=True)
    return kept


def plan_batches(
    pairs: Sequence[tuple[str, str]], corpus: Corpus, size: int, epochs: int, seed: int, world: int = 1
) -> list[Batch]:
    """Batches of all epochs, one for each process in every step, shuffled for each epoch; every pair once an epoch.

    No two pairs of a batch share the text of a query or right document, so that in-batch negatives are never right.
    That can take more batches than pairs / size; an epoch repeats its first batches until all processes have equally
    many.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    texts = [[corpus.queries[query], *corpus.right_texts(query)] for query, _ in pairs]
    width = max(len(row) for row in texts)
    filled = [row + row[:1] * (width - len(row)) for row in texts]
    dataset = Dataset.from_dict({str(i): list(column) for i, column in enumerate(zip(*filled, strict=True))})
    sampler = NoDuplicatesBatchSampler(dataset, size, drop_last=False, generator=torch.Generator(), seed=seed)
    batches: list[Batch] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn = [Batch(epoch, indices) for indices in sampler]
        batches += drawn + [drawn[i % len(drawn)] for i in range(-len(drawn) % world)]
    return batches


class HardNegatives:
    """Hard negatives of each epoch: mined by the first process, kept in a file that a resumed training reads."""

    def __init__(self, mine: Callable[[int], list[MinedPair]], folder: Path, refresh: bool) -> None:
        self.mine, self.folder, self.refresh = mine, folder, refresh
        self._epoch = -1
        self._negatives: dict[tuple[str, str], list[str]] = {}

    def find(self, epoch: int) -> dict[tuple[str, str], list[str]]:
        """Ids of the negatives of each (query, right document) in this epoch."""
        epoch = epoch if self.refresh else 0
        if epoch != self._epoch:
            path = self.folder / f"negatives-{epoch}.json"
            if processes.is_first() and not path.is_file():
                records.write_json(path, [asdict(pair) for pair in self.mine(epoch)])
            rows = processes.share(records.read_json(path) if processes.is_first() else None)
            self._negatives = {(row["id"], row["right"]): row["negatives"] for row in rows}
            self._epoch = epoch
        return self._negatives


def mine_epoch(
    model: Any, corpus: Corpus, pairs: Sequence[tuple[str, str]], settings: EmbeddingSettings, job: Job, epoch: int
) -> list[MinedPair]:
    """Hard negatives of the training pairs by the current weights; prints how many there are."""
    import polars as pl

    if settings.negatives.per_query == 0:
        return []
    size = max(1, job.training.part_tokens // settings.max_tokens)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    embed = partial(embed_texts, model, max_tokens=settings.max_tokens, size=size)
    query_vectors = embed([corpus.queries[query] for query in queries])
    document_vectors = embed(list(corpus.documents.values()))
    ranking = rank_with_right(
        queries, query_vectors, list(corpus.documents), document_vectors, corpus.right, settings.negatives.last
    )
    truth = pl.DataFrame({"id": queries, "items": [list(corpus.right[query]) for query in queries]})
    mined = mine_negatives(ranking, truth, settings.negatives, f"{job.seed} {epoch}")
    count, without = sum(len(pair.negatives) for pair in mined), sum(not pair.negatives for pair in mined)
    print(f"epoch {epoch + 1}: {count} hard negatives for {len(mined)} pairs, {without} have none", flush=True)
    return mined


def embed_texts(model: Any, texts: Sequence[str], max_tokens: int, size: int) -> np.ndarray:
    """[n, d] unit vectors as the engine would compute them with these weights, `size` texts at a time.

    (The library's encode() would use the chat template of a model that has one; the engine does not.)
    """
    import numpy as np
    import torch

    prompts = encode_texts(model.tokenizer, texts, max_tokens)
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    vectors = np.empty((len(prompts), model.get_embedding_dimension()), dtype=np.float32)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(prompts), size):
            part = longest_first[start : start + size]
            states = model(pad_right(model, [prompts[i] for i in part]))["sentence_embedding"].float()
            vectors[part] = torch.nn.functional.normalize(states, dim=-1).cpu().numpy()
    model.train(was_training)
    return vectors


def make_loss(model: Any, settings: EmbeddingSettings, batch_tokens: int, taught: Taught = NO_TEACHER) -> Any:
    """Cached multiple negatives ranking that computes at most `batch_tokens` tokens at a time; or with a teacher."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    size, scale = max(1, batch_tokens // settings.max_tokens), 1 / settings.temperature
    if taught.scores:
        return make_taught_loss(model, scale, size, taught.settings)
    return CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=size)


def encode_batch(
    model: Any,
    batch: Batch,
    pairs: Sequence[tuple[str, str]],
    corpus: Corpus,
    negatives: HardNegatives,
    max_tokens: int,
    taught: Taught = NO_TEACHER,
) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
    """Input of the loss: the batch's queries, their documents, and the hard negatives of all of them, each once; labels
    where there is a teacher.

    A hard negative that is right for another query of the batch is left out.
    """
    chosen = [pairs[i] for i in batch.pairs]
    by_pair = negatives.find(batch.epoch)
    mined = [corpus.documents[item] for pair in chosen for item in by_pair.get(pair, [])]
    right = {text for query, _ in chosen for text in corpus.right_texts(query)}
    columns = [
        [corpus.queries[query] for query, _ in chosen],
        [corpus.documents[item] for _, item in chosen],
        [text for text in dict.fromkeys(mined) if text not in right],
    ]
    features = [pad_right(model, encode_texts(model.tokenizer, texts, max_tokens)) for texts in columns if texts]
    if not taught.scores:
        return features, None
    return features, label_batch([query for query, _ in chosen], columns[1] + columns[2], corpus.documents, taught)


def make_planned_trainer(
    model: Any,
    values: dict[str, Any],
    loss: Any,
    batches: Sequence[Any],
    collect: Callable[[Any, Any], tuple[list[Any], Any]],
    step: Callable[[Any, Any, Any], torch.Tensor] | None = None,
) -> Any:
    """sentence-transformers' trainer for a SentenceTransformer or CrossEncoder, over planned batches in their order.

    values: of TrainingArguments. collect: (model, batch) → features and labels for the loss. step: (trainer, model,
    batch) → loss, after its backward pass; by default the library's. It writes no model card, and its checkpoints hold
    trained weights only.
    """
    from safetensors.torch import load_file, save_file
    from sentence_transformers import CrossEncoder, SentenceTransformerTrainer
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from torch.utils.data import DataLoader

    parent: Any = CrossEncoderTrainer if isinstance(model, CrossEncoder) else SentenceTransformerTrainer

    class PlannedTrainer(parent):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(list(batches), batch_size=1, collate_fn=lambda items: {"batch": items[0]})
            return self.accelerator.prepare(loader)

        def collect_features(self, inputs: dict[str, Any]) -> tuple[list[Any], Any]:
            return collect(self.model, inputs["batch"])

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
            if step is None:
                return super().training_step(model, inputs, num_items_in_batch)
            return step(self, model, inputs["batch"])

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            pass

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            weights = {name: weight.detach().contiguous() for name, weight in trainable_parameters(self.model)}
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / CHECKPOINT_WEIGHTS)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / CHECKPOINT_WEIGHTS), strict=False)

    arguments = parent.training_args_class(**values)
    use_one_gpu(arguments)
    return PlannedTrainer(model=model, args=arguments, loss=loss)
