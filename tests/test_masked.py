"""Masks keep BERT's rule and do not depend on what stands beside; the loss is that of the whole computation."""

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pico import SENTENCES

from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.masked import (
    MaskedExample,
    MaskedSettings,
    MaskedTask,
    make_chunks,
    mask_chunks,
    masked_log_loss,
)
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.merge import merge_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 130},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
}


@pytest.fixture(scope="module")
def tokenizer(pico_encoder: Path) -> "PreTrainedTokenizerBase":
    return load_tokenizer(pico_encoder)


@pytest.fixture(scope="module")
def examples(tokenizer: "PreTrainedTokenizerBase") -> list[MaskedExample]:
    return mask_chunks(tokenizer, make_chunks(tokenizer, SENTENCES, 40), MaskedSettings(), seed=0)


@pytest.fixture(scope="module")
def pico_masked(pico_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder with an MLM head of its own in its checkpoint."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

    folder = tmp_path_factory.mktemp("models") / "pico-masked"
    torch.manual_seed(0)
    BertForMaskedLM(AutoConfig.from_pretrained(pico_encoder)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico_encoder).save_pretrained(folder)
    return folder


def literal_loss(model: Any, example: MaskedExample) -> float:
    """Logits of all positions of one row, nothing padded and nothing left out."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([example.ids])).logits[0]
    assert logits.shape == (len(example.ids), model.config.vocab_size)
    found = zip(example.positions, example.originals, strict=True)
    return sum(-logits[place].log_softmax(0)[token].item() for place, token in found)


@pytest.mark.parametrize("name", MODELS)
def test_only_chosen_positions_meet_the_vocabulary_and_the_loss_is_the_same(
    name: str, examples: list[MaskedExample], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), initializer_range=0.2, **(SIZES | MODELS[name]))
    model = AutoModelForMaskedLM.from_config(config).eval()
    shapes = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *found: shapes.append(found[2].shape))
    loss = MaskedTask().loss(model, examples[:5]).item()
    hook.remove()
    assert shapes[0][:-1] == (sum(len(example.positions) for example in examples[:5]),)
    expected = [literal_loss(model, example) for example in examples[:5]]
    assert loss == pytest.approx(sum(expected), rel=1e-5)


def test_gradients_are_those_of_the_whole_computation(pico_masked: Path, examples: list[MaskedExample]) -> None:
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(pico_masked, dtype=torch.float32).eval()
    MaskedTask().loss(model, examples[:1]).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    (example, *_) = examples
    logits = model(torch.tensor([example.ids])).logits[0, list(example.positions)]
    torch.nn.functional.cross_entropy(logits, torch.tensor(example.originals), reduction="sum").backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-5, rtol=1e-4)


def test_masks_keep_berts_rule(tokenizer: "PreTrainedTokenizerBase") -> None:
    """10,000 tokens: 15 % are chosen; of them 80 % become the mask, 10 % anything, 10 % stay."""
    rng = random.Random(0)
    chunks = [[2, *rng.choices(range(5, len(tokenizer)), k=100), 3] for _ in range(100)]
    fates: Counter[str] = Counter()
    for chunk, example in zip(chunks, mask_chunks(tokenizer, chunks, MaskedSettings(), 0), strict=True):
        assert len(example.positions) == 15
        restored = list(example.ids)
        for place, token in zip(example.positions, example.originals, strict=True):
            fates["mask" if restored[place] == 4 else "stays" if restored[place] == token else "other"] += 1
            restored[place] = token
        assert restored == chunk
        assert not {0, 101} & set(example.positions)
    assert fates["mask"] / 1500 == pytest.approx(0.8, abs=0.03)
    assert fates["other"] / 1500 == pytest.approx(0.1, abs=0.025)
    assert fates["stays"] / 1500 == pytest.approx(0.1, abs=0.025)


def test_a_mask_depends_on_seed_and_draw_but_not_on_other_chunks(tokenizer: "PreTrainedTokenizerBase") -> None:
    chunks = make_chunks(tokenizer, SENTENCES, 60)
    settings = MaskedSettings(draws=2)
    examples = mask_chunks(tokenizer, chunks, settings, seed=1)
    assert examples == mask_chunks(tokenizer, chunks, settings, seed=1)
    assert examples[:4] == mask_chunks(tokenizer, chunks[:4], settings, seed=1)[:4]
    again = examples[len(chunks) :]
    assert [len(chunks), len(again)] == [len(SENTENCES)] * 2
    for first, second, other in zip(examples, again, mask_chunks(tokenizer, chunks, settings, seed=2), strict=False):
        assert first.positions != second.positions and first.positions != other.positions


def test_a_word_alone_is_always_chosen(tokenizer: "PreTrainedTokenizerBase") -> None:
    (example,) = mask_chunks(tokenizer, [[2, 50, 3]], MaskedSettings(probability=0.01), 0)
    assert (example.positions, example.originals) == ((1,), (50,))


def test_chunks_are_the_texts_in_order_and_never_hold_two(
    tokenizer: "PreTrainedTokenizerBase", capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [SENTENCES[0], "", SENTENCES[1]]
    chunks = make_chunks(tokenizer, texts, 12)
    assert "1 of" in capsys.readouterr().out
    assert all(len(chunk) <= 12 and (chunk[0], chunk[-1]) == (2, 3) for chunk in chunks)
    whole = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert [token for chunk in chunks for token in chunk[1:-1]] == whole
    first = len(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    assert first in [sum(len(chunk) - 2 for chunk in chunks[:n]) for n in range(len(chunks))]
    assert make_chunks(tokenizer, [], 12) == []


def test_what_cannot_be_masked_is_refused(tokenizer: "PreTrainedTokenizerBase", pico_llm: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens = 129: the model reads at most 128"):
        make_chunks(tokenizer, SENTENCES, 129)
    with pytest.raises(ValueError, match="has no mask token"):
        mask_chunks(load_tokenizer(pico_llm), [[7, 8]], MaskedSettings(), 0)
    with pytest.raises(ValueError, match=r"probability = 1\.0"):
        MaskedSettings(probability=1.0)
    with pytest.raises(ValueError, match="draws = 0"):
        MaskedSettings(draws=0)


def test_the_held_out_loss_is_a_mean_over_chosen_tokens(pico_masked: Path, examples: list[MaskedExample]) -> None:
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(pico_masked, dtype=torch.float32).eval()
    many = examples * 2  # more than a batch
    expected = sum(literal_loss(model, example) for example in many) / sum(len(example.positions) for example in many)
    assert masked_log_loss(pico_masked, many) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full", pytest.param("qlora", marks=pytest.mark.slow)])
def test_every_method_learns_and_is_merged_into_a_masked_model(
    method: Any, pico_masked: Path, examples: list[MaskedExample], tmp_path: Path
) -> None:
    training = TrainingSettings(epochs=40, batch=16, learning_rate=1e-2, warmup=0.0)
    job = Job(pico_masked, tmp_path / "trained", LoraSettings(method=method, r=8, alpha=16), training, seed=0)
    fine_tune(MaskedTask(), examples, job)
    merge_adapter(pico_masked, job.folder, tmp_path / "merged")
    before, after = (masked_log_loss(folder, examples) for folder in (pico_masked, tmp_path / "merged"))
    assert after < 0.75 * before


def test_a_head_that_the_encoder_lacks_is_trained_and_saved_with_the_adapter(
    pico_encoder: Path, examples: list[MaskedExample], tmp_path: Path
) -> None:
    """Drawn at random in training, it must not be drawn again in the merge."""
    training = TrainingSettings(epochs=40, batch=16, learning_rate=1e-2, warmup=0.0)
    job = Job(pico_encoder, tmp_path / "trained", LoraSettings(r=8, alpha=16), training, seed=5)
    fine_tune(MaskedTask(), examples, job)
    merge_adapter(pico_encoder, job.folder, tmp_path / "merged")
    before, after = masked_log_loss(pico_encoder, examples, seed=5), masked_log_loss(tmp_path / "merged", examples)
    assert after < 0.6 * before
