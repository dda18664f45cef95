"""A bi-encoder's loss is the literal softmax, its folder opens in the engine, and a killed training ends the same."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.texts import encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.retrieval.negatives import MinedPair, NegativeSettings
from kaggle_llm.tasks import embedding
from kaggle_llm.tasks.embedding import (
    Batch,
    Corpus,
    EmbeddingSettings,
    HardNegatives,
    choose_pairs,
    embed_texts,
    encode_batch,
    load_embedder,
    make_loss,
    mine_epoch,
    plan_batches,
    train_embedder,
)
from kaggle_llm.training import trainer as training_loop
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job

WORDS = [
    "the",
    "digit",
    "fraction",
    "tom",
    "adds",
    "rectangle",
    "area",
    "percent",
    "equation",
    "divides",
    "forgets",
    "carry",
    "width",
    "hundred",
    "sign",
    "bigger",
]
QUERIES = {f"q{i}": f"{WORDS[i]} {WORDS[(3 * i + 1) % 16]}" for i in range(12)}
DOCUMENTS = {
    f"d{i}": f"the student {WORDS[i]} {WORDS[(5 * i + 2) % 16]} and {WORDS[(7 * i + 4) % 16]}" for i in range(16)
}
RIGHT = {f"q{i}": [f"d{i}"] for i in range(12)}
CORPUS = Corpus(QUERIES, DOCUMENTS, RIGHT)


def write_untrained(settings: EmbeddingSettings, base: Path, folder: Path) -> None:
    """The base in the form that a training leaves."""
    job = Job(base, folder, LoraSettings(method="full"), TrainingSettings(), seed=0)
    load_embedder(settings, job, "cpu").save_pretrained(str(folder), create_model_card=False)


PAIRS = [(f"q{i}", f"d{i}") for i in range(12)]
TRUTH = pl.DataFrame({"id": list(RIGHT), "items": list(RIGHT.values())})
MINED = NegativeSettings(first=1, last=6, per_query=2, margin=None)
IN_BATCH = NegativeSettings(per_query=0)
SMALL = EmbeddingSettings(max_tokens=32, negatives=MINED)
LAST = EmbeddingSettings(pooling="last", max_tokens=32, negatives=MINED)


def make_job(base: Path, folder: Path, method: Any = "lora", **changes: Any) -> Job:
    training = TrainingSettings(**({"batch": 4, "learning_rate": 1e-2, "checkpoint_steps": 1, "warmup": 0.0} | changes))
    return Job(base, folder, LoraSettings(method=method, r=4, alpha=8), training, seed=3)


def train(settings: EmbeddingSettings, job: Job) -> list[dict[str, Any]]:
    """Train on the twelve pairs and return the log's steps."""
    train_embedder(settings, QUERIES, DOCUMENTS, TRUTH, job)
    rows = [json.loads(line) for line in (job.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]


def embed(folder: Path, texts: Sequence[str]) -> np.ndarray:
    engine = TransformersEngine(folder, EngineSettings(batch_tokens=64))
    return engine.embed(encode_texts(load_tokenizer(folder), texts, 32))


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def literal_loss(folder: Path, batch: Batch, negatives: dict[tuple[str, str], list[str]], temperature: float) -> float:
    """Mean over the batch of −log softmax(cosine / temperature)[own document], by the engine's vectors."""
    chosen = [PAIRS[place] for place in batch.pairs]
    positives = [DOCUMENTS[item] for _, item in chosen]
    hard = {DOCUMENTS[item] for pair in chosen for item in negatives.get(pair, [])} - set(positives)
    queries = embed(folder, [QUERIES[query] for query, _ in chosen]).astype(float)
    logits = queries @ embed(folder, positives + sorted(hard)).astype(float).T / temperature
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits.diagonal()))


# the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mined", [IN_BATCH, MINED], ids=["in-batch", "hard"])
@pytest.mark.parametrize("batch_tokens", [32, 1000], ids=["cached", "at-once"])
def test_the_loss_is_the_literal_softmax_over_the_batch(
    pico_encoder: Path, tmp_path: Path, mined: NegativeSettings, batch_tokens: int
) -> None:
    import torch

    settings = EmbeddingSettings(max_tokens=32, temperature=0.1, negatives=mined)
    job = make_job(pico_encoder, tmp_path / "run")
    model, batch = load_embedder(settings, job).eval(), Batch(0, [0, 5, 7, 9, 11])
    negatives = HardNegatives(lambda epoch: mine_epoch(model, CORPUS, PAIRS, settings, job, epoch), tmp_path, True)
    with torch.no_grad():
        features, _ = encode_batch(model, batch, PAIRS, CORPUS, negatives, 32)
        found = make_loss(model, settings, batch_tokens)(features, None).item()
    assert len(features) == (3 if mined is MINED else 2)
    assert found == pytest.approx(literal_loss(pico_encoder, batch, negatives.find(0), 0.1), abs=1e-5)


def test_the_first_logged_loss_is_that_of_the_base_model_on_the_planned_batch(pico_llm: Path, tmp_path: Path) -> None:
    settings = EmbeddingSettings(pooling="last", max_tokens=32, negatives=IN_BATCH)
    write_untrained(settings, pico_llm, tmp_path / "before")
    (first, *_) = train(settings, make_job(pico_llm, tmp_path / "run"))
    (batch, *_) = plan_batches(PAIRS, CORPUS, 4, 1, seed=3)
    assert first["loss"] == pytest.approx(literal_loss(tmp_path / "before", batch, {}, 0.05), abs=1e-5)


def test_a_hard_negative_that_is_right_for_another_query_of_the_batch_is_left_out(
    pico_encoder: Path, tmp_path: Path
) -> None:
    job = make_job(pico_encoder, tmp_path / "run")
    model = load_embedder(SMALL, job)
    mined = [MinedPair("q0", "d0", ("d1", "d2")), MinedPair("q1", "d1", ("d2", "d3")), MinedPair("q2", "d2", ("d4",))]
    negatives = HardNegatives(lambda epoch: mined, tmp_path, True)
    (_, positives, hard), _ = encode_batch(model, Batch(0, [0, 1]), PAIRS, CORPUS, negatives, 32)
    for features, items in ((positives, ["d0", "d1"]), (hard, ["d2", "d3"])):
        rows = zip(features["input_ids"], features["attention_mask"], strict=True)
        expected = encode_texts(model.tokenizer, [DOCUMENTS[item] for item in items], 32)
        assert [ids[mask == 1].tolist() for ids, mask in rows] == expected


# batches ------------------------------------------------------------------------------------------------------


def test_no_batch_holds_a_query_or_a_right_document_twice_and_an_epoch_holds_every_pair_once() -> None:
    right = {"a": ["d1"], "b": ["d1"], "c": ["d2", "d3"], "d": ["d3"], "e": ["d4"], "f": ["d5"]}
    corpus = Corpus({name: f"text {name}" for name in right}, {f"d{i}": f"document {i}" for i in range(1, 6)}, right)
    pairs = [(query, item) for query, items in right.items() for item in items]
    batches = plan_batches(pairs, corpus, 3, 4, seed=0)
    for epoch in range(4):
        drawn = [batch.pairs for batch in batches if batch.epoch == epoch]
        assert sorted(place for members in drawn for place in members) == list(range(len(pairs)))
        for members in drawn:
            texts = [text for place in members for text in {pairs[place][0], *right[pairs[place][0]]}]
            assert len(members) <= 3
            assert len(texts) == len(set(texts))
    assert batches[0].pairs != batches[len(batches) // 4].pairs


def test_documents_with_the_same_text_are_the_same_document() -> None:
    corpus = Corpus({"a": "one", "b": "two"}, {"x": "same", "y": "same"}, {"a": ["x"], "b": ["y"]})
    assert [batch.pairs for batch in plan_batches([("a", "x"), ("b", "y")], corpus, 2, 1, 0)] in (
        [[0], [1]],
        [[1], [0]],
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_get_equally_many_batches(world: int) -> None:
    batches = plan_batches(PAIRS, CORPUS, 5, 2, seed=0, world=world)
    assert len(batches) == 2 * -(-3 // world) * world
    assert [batch.epoch for batch in batches] == sorted(batch.epoch for batch in batches)
    assert {place for batch in batches for place in batch.pairs} == set(range(12))


def test_a_dataset_smaller_than_one_batch_takes_one_step_an_epoch(pico_encoder: Path, tmp_path: Path) -> None:
    steps = train(SMALL, make_job(pico_encoder, tmp_path / "run", batch=64, epochs=2))
    assert [row["step"] for row in steps] == [1, 2]


def test_only_pairs_within_the_budget_are_trained_on_and_cut_texts_are_counted(
    pico_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(pico_encoder)
    texts = [text for query, item in PAIRS for text in (QUERIES[query], DOCUMENTS[item])]
    cut = [min(len(ids), 6) for ids in encode_texts(tokenizer, texts, 99)]
    settings = EmbeddingSettings(max_tokens=6)
    assert choose_pairs(CORPUS, tokenizer, settings, sum(cut[:8])) == PAIRS[:4]
    assert choose_pairs(CORPUS, tokenizer, settings, sum(cut[:8]) - 1) == PAIRS[:3]
    capsys.readouterr()
    assert choose_pairs(CORPUS, tokenizer, settings, None) == PAIRS
    long = sum(len(ids) > 6 for ids in encode_texts(tokenizer, texts, 99))
    assert long >= 12
    assert f"{long} of their texts are cut at embedding.max_tokens = 6" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"training.tokens = 3: not even the first of 12 pairs fits"):
        choose_pairs(CORPUS, tokenizer, settings, 3)


# what training leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("base", "settings"), [("pico_encoder", SMALL), ("pico_llm", LAST)], ids=["encoder", "causal"])
def test_what_was_trained_is_what_the_engine_embeds(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    settings: EmbeddingSettings,
    method: str,
) -> None:
    kept: list[Any] = []
    save = embedding.save_whole
    monkeypatch.setattr(embedding, "save_whole", lambda model, *others: (kept.append(model), save(model, *others)))
    folder, texts = request.getfixturevalue(base), [*QUERIES.values(), *DOCUMENTS.values()]
    write_untrained(settings, folder, tmp_path / "before")
    train(settings, make_job(folder, tmp_path / "run", method))
    found = embed(tmp_path / "run", texts)
    np.testing.assert_allclose(found, embed_texts(kept[0], texts, 32, 5), atol=1e-5)
    assert np.abs(found - embed(tmp_path / "before", texts)).max() > 0.01
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "before").keys()


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(method, marks=pytest.mark.slow) for method in ("qlora", "full"))]
)
def test_training_brings_pairs_together(pico_llm: Path, tmp_path: Path, method: str) -> None:
    write_untrained(LAST, pico_llm, tmp_path / "before")
    changes = {"epochs": 5, "learning_rate": 3e-3 if method == "full" else 1e-2, "checkpoint_steps": 100}
    train(LAST, make_job(pico_llm, tmp_path / "run", method, **changes))
    losses = [literal_loss(tmp_path / name, Batch(0, list(range(12))), {}, 0.05) for name in ("before", "run")]
    assert losses[1] < 0.7 * losses[0]


def test_the_folder_is_whole_and_names_no_path_of_this_machine(pico_encoder: Path, tmp_path: Path) -> None:
    train(SMALL, make_job(pico_encoder, tmp_path / "run"))
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json", "model.safetensors", "log.jsonl"} <= files
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for path in set((tmp_path / "run").rglob("*.json")) - {tmp_path / "run" / "weights.json"}:  # the base's own place
        assert str(pico_encoder) not in path.read_text(encoding="utf-8"), path


def test_last_token_pooling_is_the_literal_last_hidden_state_whatever_stands_beside_it(
    pico_llm: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel

    train(LAST, make_job(pico_llm, tmp_path / "run"))
    model = AutoModel.from_pretrained(tmp_path / "run", dtype=torch.float32).eval()
    texts = ["Tom", "Which fraction is bigger, 2/3 or 3/5?", "the digit 7 in 4712"]
    prompts = encode_texts(load_tokenizer(tmp_path / "run"), texts, 32)
    assert len({len(prompt) for prompt in prompts}) == 3
    with torch.no_grad():
        states = [model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy() for prompt in prompts]
    literal = np.stack([state / np.linalg.norm(state) for state in states])
    np.testing.assert_allclose(embed(tmp_path / "run", texts), literal, atol=1e-5)


def test_mean_pooling_reads_an_encoder_that_is_no_sentence_transformer(pico_encoder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(pico_encoder, bare)
    (bare / "modules.json").unlink()
    write_untrained(EmbeddingSettings(pooling="mean", max_tokens=32), bare, tmp_path / "mean")
    texts = list(QUERIES.values())
    np.testing.assert_allclose(embed(tmp_path / "mean", texts), embed(pico_encoder, texts), atol=1e-6)
    with pytest.raises(ValueError, match=r"has no modules.json: set embedding.pooling to mean"):
        load_embedder(SMALL, make_job(bare, tmp_path / "run"))


# mining and resume --------------------------------------------------------------------------------------------


def test_negatives_are_mined_anew_each_epoch_only_when_asked(
    pico_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for refresh, epochs in ((True, ["epoch 1", "epoch 2", "epoch 3"]), (False, ["epoch 1"])):
        settings = EmbeddingSettings(max_tokens=32, negatives=MINED, refresh=refresh)
        train(settings, make_job(pico_encoder, tmp_path / str(refresh), epochs=3))
        lines = [line for line in capsys.readouterr().out.splitlines() if "hard negatives for 12 pairs" in line]
        assert [line.split(":")[0] for line in lines] == epochs


def test_mined_negatives_are_near_and_change_with_the_weights(pico_encoder: Path, tmp_path: Path) -> None:
    import torch

    job = make_job(pico_encoder, tmp_path / "run")
    model = load_embedder(SMALL, job).train()
    first = mine_epoch(model, CORPUS, PAIRS, SMALL, job, 0)
    cosines = embed(pico_encoder, list(QUERIES.values())) @ embed(pico_encoder, list(DOCUMENTS.values())).T
    for row, pair in zip(cosines, first, strict=True):
        near = [list(DOCUMENTS)[place] for place in np.argsort(-row)[: MINED.last]]
        assert set(pair.negatives) <= set(near) - {pair.right}
    assert model.training
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    assert mine_epoch(model, CORPUS, PAIRS, SMALL, job, 0) != first


def test_mining_on_a_quantised_base_leaves_its_gradients_alone(pico_llm: Path, tmp_path: Path) -> None:
    job = make_job(pico_llm, tmp_path / "run", "qlora")
    model, found = load_embedder(LAST, job), []
    for _ in range(2):
        model.train().zero_grad()
        negatives = HardNegatives(lambda _: [], tmp_path, True)
        (queries, _), _ = encode_batch(model, Batch(0, [0, 1, 2]), PAIRS, CORPUS, negatives, 32)
        model(queries)["sentence_embedding"][:, 0].sum().backward()
        found.append({n: w.grad.clone() for n, w in model.named_parameters() if "lora_B" in n})
        mine_epoch(model, CORPUS, PAIRS, LAST, job, 0)
    before, after = found
    for name, gradient in before.items():
        assert gradient.abs().max() > 0
        np.testing.assert_array_equal(after[name].numpy(), gradient.numpy())


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training dies behind its step `step`, before that step becomes a checkpoint."""
    from transformers import TrainerCallback

    make = training_loop.make_callbacks

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    with_kill: Callable[..., list[Any]] = lambda *arguments: [Kill(), *make(*arguments)]  # noqa: E731
    monkeypatch.setattr(training_loop, "make_callbacks", with_kill)


@pytest.mark.parametrize(
    ("step", "checkpoint_steps"),
    [(3, 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((1, 2), (4, 1), (5, 2)))],
)
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    pico_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    checkpoint_steps: int,
) -> None:
    changes = {"epochs": 2, "checkpoint_steps": checkpoint_steps, "warmup": 0.3}  # 3 steps an epoch
    undisturbed = train(SMALL, make_job(pico_encoder, tmp_path / "whole", **changes))
    job = make_job(pico_encoder, tmp_path / "killed", **changes)
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, job)
    assert not (job.folder / "model.safetensors").exists()
    capsys.readouterr()
    steps = train(SMALL, job)
    last = (step - 1) // checkpoint_steps * checkpoint_steps
    assert ("resuming" in capsys.readouterr().out) == (last > 0)
    assert [(row["step"], row["loss"], row["learning_rate"]) for row in steps] == [
        (row["step"], row["loss"], row["learning_rate"]) for row in undisturbed
    ]
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, killed[name])
    rates = [row["learning_rate"] for row in steps]
    assert len(rates) == 6 and rates.index(max(rates)) > 0 and rates[-1] < rates[2]  # one schedule over both epochs


# bad input ----------------------------------------------------------------------------------------------------


def test_ids_without_a_text_are_named(pico_encoder: Path, tmp_path: Path) -> None:
    job = make_job(pico_encoder, tmp_path / "run")
    for ids, items, message in (
        (["q0", "q99"], [["d0"], ["d1"]], "1 queries"),
        (["q0"], [["d0", "d77"]], "1 documents"),
    ):
        with pytest.raises(ValueError, match=rf"truth names {message} without a text"):
            train_embedder(SMALL, QUERIES, DOCUMENTS, pl.DataFrame({"id": ids, "items": items}), job)


def test_more_tokens_than_the_model_reads_are_refused(pico_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_tokens = 256, but .* reads at most 128"):
        load_embedder(EmbeddingSettings(), make_job(pico_encoder, tmp_path / "run"))


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"max_tokens": 0}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        EmbeddingSettings(**changes)
