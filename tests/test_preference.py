"""DPO and the reward model have the losses of their papers, learn, resume and refuse what says nothing."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.tasks.preference import (
    PreferenceExample,
    PreferenceSettings,
    fit_pairs,
    make_preference_trainer,
    prefer,
    score_lengths,
    score_pairs,
    score_rewards,
    split_batch,
    train_preference,
)
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, make_arguments
from kaggle_llm.weights.merge import merge_adapter

DPO, REWARD = PreferenceSettings("dpo"), PreferenceSettings("reward")
BOTH = pytest.mark.parametrize("settings", [DPO, REWARD], ids=["dpo", "reward"])
ONE = pytest.mark.parametrize(
    "settings", [DPO, pytest.param(REWARD, marks=pytest.mark.slow)], ids=["dpo", "reward"]
)  # what the other repeats is slow
GOOD, BAD = 266, 265  # " Yes", " No"


def pair(*lengths: int) -> PreferenceExample:
    """A pair of tokens that differ everywhere."""
    prompt, chosen, rejected = lengths
    return PreferenceExample(tuple(range(10, 10 + prompt)), (300,) * chosen, (301,) * rejected)


def random_pairs(seed: int, count: int) -> list[PreferenceExample]:
    """Different lengths; the chosen completion has GOOD at both ends, the rejected one BAD."""
    rng = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(300, 330), k=rng.randint(1, longest)))

    return [PreferenceExample(tokens(20), (GOOD, *tokens(3), GOOD), (BAD, *tokens(3), BAD)) for _ in range(count)]


def make_job(base: Path, folder: Path, method: Any = "lora", **training: Any) -> Job:
    values = {"batch": 4, "batch_tokens": 160, "learning_rate": 1e-2, "warmup": 0.0} | training
    return Job(base, folder, LoraSettings(method=method, r=4, alpha=8), TrainingSettings(**values), seed=1)


def trainer_of(settings: PreferenceSettings, pairs: Sequence[PreferenceExample], job: Job) -> Any:
    checkpoints = Checkpoints(job.folder, {})
    values = make_arguments(job, checkpoints, 1) | {"per_device_train_batch_size": len(pairs)}
    return make_preference_trainer(settings, pairs, values, job)


def loss_of(trainer: Any) -> float:
    """TRL's loss of all pairs as one batch."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    count = trainer._get_num_items_in_batch([batch], None)
    return float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).detach())


def disturb(model: Any) -> None:
    """What is trained moves by a little: B is not zero any more."""
    import torch

    torch.manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.05


def logprob(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """log π(completion | prompt), a sequence alone, the whole vocabulary at every place."""
    import torch

    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(completion))


def literal_dpo(policy: Any, reference: Any, pairs: Sequence[PreferenceExample], beta: float) -> float:
    """Mean of −log σ(β[(log π(c) − log π_ref(c)) − (log π(r) − log π_ref(r))]): Rafailov et al., 2023, equation 7."""

    def moved(one: PreferenceExample, completion: Sequence[int]) -> float:
        return logprob(policy, one.prompt, completion) - logprob(reference, one.prompt, completion)

    margins = [beta * (moved(one, one.chosen) - moved(one, one.rejected)) for one in pairs]
    return sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)


def literal_reward(model: Any, pairs: Sequence[PreferenceExample]) -> float:
    """Mean of −log σ(r(chosen) − r(rejected)): Bradley and Terry, 1952."""
    import torch

    losses = []
    with torch.no_grad():
        for one in pairs:
            texts = [torch.tensor([[*one.prompt, *completion]]) for completion in (one.chosen, one.rejected)]
            chosen, rejected = (float(model(input_ids=text).logits) for text in texts)
            losses.append(math.log1p(math.exp(rejected - chosen)))
    return sum(losses) / len(losses)


def load_base(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def merge(settings: PreferenceSettings, base: Path, adapter: Path, folder: Path) -> Path:
    """The adapter folder as PEFT alone opens and merges it."""
    import transformers
    from peft import PeftModel

    head = settings.kind == "reward"
    maker = transformers.AutoModelForSequenceClassification if head else transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(adapter)
    model = PeftModel.from_pretrained(maker.from_pretrained(base, config=config), adapter)
    model.merge_and_unload().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def read_log(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


# losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(method, marks=pytest.mark.slow) for method in ("dora", "full"))]
)
def test_dpo_begins_at_log_two(pico_llm: Path, tmp_path: Path, method: str) -> None:
    trainer = trainer_of(DPO, random_pairs(1, 5), make_job(pico_llm, tmp_path / "run", method))
    assert loss_of(trainer) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_of_dpo_is_that_of_its_paper(pico_llm: Path, tmp_path: Path, method: str, beta: float) -> None:
    pairs = random_pairs(2, 5)
    trainer = trainer_of(PreferenceSettings("dpo", beta=beta), pairs, make_job(pico_llm, tmp_path / "run", method))
    disturb(trainer.model)
    expected = literal_dpo(trainer.model, load_base(pico_llm), pairs, beta)
    assert loss_of(trainer) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - math.log(2)) > 1e-2


def test_an_adapter_needs_no_second_copy_of_the_base(pico_llm: Path, tmp_path: Path) -> None:
    trainer = trainer_of(DPO, random_pairs(2, 2), make_job(pico_llm, tmp_path / "run"))
    assert trainer.ref_model is None
    assert list(trainer.model.peft_config) == ["default"]
    assert trainer_of(DPO, random_pairs(2, 2), make_job(pico_llm, tmp_path / "run", "full")).ref_model is not None


@pytest.mark.parametrize("base", ["pico_llm", "pico_encoder"])
def test_the_loss_of_a_reward_is_that_of_bradley_and_terry(
    request: pytest.FixtureRequest, tmp_path: Path, base: str
) -> None:
    pairs = [
        PreferenceExample(*(tuple(token % 60 + 6 for token in part) for part in (one.prompt, one.chosen, one.rejected)))
        for one in random_pairs(3, 5)
    ]
    trainer = trainer_of(REWARD, pairs, make_job(bare(request, base), tmp_path / "run"))
    disturb(trainer.model)
    trainer.model.eval()
    expected = literal_reward(trainer.model, pairs)
    assert loss_of(trainer) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - math.log(2)) > 1e-3


def bare(request: pytest.FixtureRequest, name: str) -> Path:
    """The folder of the transformer alone."""
    folder: Path = request.getfixturevalue(name)
    return folder.with_name("pico-bert") if name == "pico_encoder" else folder


# training -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("batch_tokens", [60, 120, 10_000])
def test_a_step_takes_the_mean_over_its_pairs(
    pico_llm: Path, tmp_path: Path, settings: PreferenceSettings, batch_tokens: int
) -> None:
    """Seven pairs in parts of 1, of 2 and of 8: the last part of 2 has one pair, which counts as much as others."""
    import torch

    pairs = [pair(12, 2 + i, 8 - i) for i in range(7)]
    job = make_job(
        pico_llm, tmp_path / "run", "full", batch=8, batch_tokens=batch_tokens, learning_rate=1e-30, epochs=2
    )
    assert split_batch(pairs, job.training, 1)[0] == {60: 1, 120: 2, 10_000: 8}[batch_tokens]
    train_preference(settings, pairs, job)
    rows = read_log(tmp_path / "run")
    if settings.kind == "dpo":
        expected = math.log(2)
    else:
        from transformers import AutoModelForSequenceClassification

        expected = literal_reward(AutoModelForSequenceClassification.from_pretrained(job.folder), pairs)
    assert [row["loss"] for row in rows] == pytest.approx([expected] * 2, abs=1e-4)
    assert torch.tensor([row["grad_norm"] for row in rows]).std() < 1e-3 * rows[0]["grad_norm"]


@ONE
def test_parts_of_any_size_train_the_same(pico_llm: Path, tmp_path: Path, settings: PreferenceSettings) -> None:
    pairs = random_pairs(4, 7)
    for batch_tokens in (1, 140, 10_000):
        train_preference(settings, pairs, make_job(pico_llm, tmp_path / str(batch_tokens), batch_tokens=batch_tokens))
    norms = [[row["grad_norm"] for row in read_log(tmp_path / name)] for name in ("1", "140", "10000")]
    assert len(norms[0]) == 2  # of 4 and of 3 pairs
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert norms[2] == pytest.approx(norms[0], rel=1e-3)


@BOTH
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_training_learns_what_is_preferred(
    pico_llm: Path, tmp_path: Path, settings: PreferenceSettings, method: str
) -> None:
    train, held_out = random_pairs(5, 48), random_pairs(6, 32)
    rate = 1e-2 if method == "lora" else 2e-3
    job = make_job(pico_llm, tmp_path / "run", method, epochs=3, learning_rate=rate, batch_tokens=2000)
    train_preference(settings, train, job)
    losses = [row["loss"] for row in read_log(job.folder)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    merge_adapter(pico_llm, job.folder, tmp_path / "merged")
    rule = score_lengths(held_out)
    before = prefer(rule if settings.kind == "reward" else score_pairs(settings, pico_llm, held_out, EngineSettings()))
    assert before < 0.65 < 0.8 < prefer(score_pairs(settings, tmp_path / "merged", held_out, EngineSettings()))


@pytest.mark.parametrize("method", ["qlora", "dora"])
@BOTH
def test_other_adapters_train_in_float32(
    pico_llm: Path, tmp_path: Path, settings: PreferenceSettings, method: str
) -> None:
    job = make_job(pico_llm, tmp_path / "run", method)
    train_preference(settings, random_pairs(7, 8), job)
    assert {str(weight.dtype) for weight in tensors(job.folder).values()} == {"float32"}
    assert any(np.abs(weight).max() > 0 for name, weight in tensors(job.folder).items() if "lora_B" in name)


@BOTH
def test_an_adapter_folder_is_whole_and_opens_with_peft(
    pico_llm: Path, tmp_path: Path, settings: PreferenceSettings
) -> None:
    job = make_job(pico_llm, tmp_path / "run")
    train_preference(settings, random_pairs(8, 8), job)
    assert {path.name for path in job.folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "config.json", "log.jsonl", "weights.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert str(tmp_path) not in (job.folder / "adapter_config.json").read_text()
    merged = tensors(merge(settings, pico_llm, job.folder, tmp_path / "merged"))
    base = tensors(pico_llm)
    changed = [name for name in base if name in merged and not np.array_equal(base[name], merged[name])]
    assert len(changed) == 2 * 7  # every matrix of both layers
    assert ("score.weight" in merged) == (settings is REWARD)
    if settings is REWARD:
        assert any("score" in name for name in tensors(job.folder))
        assert json.loads((job.folder / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}


@ONE
def test_a_killed_training_goes_on_to_the_same_weights(
    pico_llm: Path, tmp_path: Path, settings: PreferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    pairs = random_pairs(9, 14)
    settle = {"checkpoint_steps": 2, "epochs": 2}  # 8 steps, four an epoch
    whole, job = (make_job(pico_llm, tmp_path / name, **settle) for name in ("whole", "killed"))
    train_preference(settings, pairs, whole)
    original, steps = Trainer.training_step, []

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", die)
    with pytest.raises(KeyboardInterrupt):
        train_preference(settings, pairs, job)
    assert not job.folder.exists()
    monkeypatch.setattr(
        Trainer, "training_step", lambda *args, **kwargs: steps.append("again") or original(*args, **kwargs)
    )
    train_preference(settings, pairs, job)
    assert 4 <= steps.count("again") < len([step for step in steps if step != "again"])
    for name, weight in tensors(whole.folder).items():
        np.testing.assert_array_equal(weight, tensors(job.folder)[name])
    assert [row["step"] for row in read_log(job.folder)] == list(range(1, 9))
    assert [row["loss"] for row in read_log(job.folder)] == [row["loss"] for row in read_log(whole.folder)]
    assert not job.folder.with_name("killed.checkpoints").exists()


def test_only_pairs_within_the_budget_are_trained_on(
    pico_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = random_pairs(10, 9)
    budget = sum(len(one) for one in pairs[:6])
    train_preference(DPO, pairs, make_job(pico_llm, tmp_path / "cut", tokens=budget))
    assert f"training on 6 of 9 pairs, {budget} tokens" in capsys.readouterr().out
    train_preference(DPO, pairs[:6], make_job(pico_llm, tmp_path / "six", tokens=budget))
    for name, weight in tensors(tmp_path / "cut").items():
        np.testing.assert_array_equal(weight, tensors(tmp_path / "six")[name])
    with pytest.raises(ValueError, match=r"training.tokens = 3: not even the first of 9 pairs"):
        train_preference(DPO, pairs, make_job(pico_llm, tmp_path / "none", tokens=3))


def test_fewer_pairs_than_a_batch_are_said(pico_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_preference(REWARD, random_pairs(11, 2), make_job(pico_llm, tmp_path / "run"))
    assert "fewer pairs than training.batch = 4: one step an epoch" in capsys.readouterr().out
    assert len(read_log(tmp_path / "run")) == 1


# batches and bad input ------------------------------------------------------------------------------------


def test_parts_hold_what_the_longest_pair_allows() -> None:
    pairs = [pair(10, 5, 15), pair(2, 1, 1)]  # padded: 2 · 25 tokens a pair

    def split(batch: int, batch_tokens: int, world: int = 1) -> tuple[int, int]:
        return split_batch(pairs, TrainingSettings(batch=batch, batch_tokens=batch_tokens), world)

    assert split(8, 49) == (1, 8)
    assert split(8, 149) == (2, 4)
    assert split(8, 199) == (2, 4)  # three would fit, and make no batch of eight
    assert split(8, 200) == (4, 2)
    assert split(8, 10_000) == (8, 1)
    assert split(8, 10_000, world=2) == (4, 1)
    with pytest.raises(ValueError, match=r"training.batch = 8 is no multiple of the 3 processes"):
        split(8, 100, world=3)


def test_long_completions_are_cut_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    long = PreferenceExample((1, 2, 3), (4, 5, 6, 7), (8,))
    assert fit_pairs([long, pair(2, 1, 2)], 5) == [PreferenceExample((1, 2, 3), (4, 5), (8,)), pair(2, 1, 2)]
    assert "1 of 2 pairs are longer than preference.max_tokens = 5: cut" in capsys.readouterr().out
    assert fit_pairs([long], 7) == [long]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            PreferenceExample((1,), (5, 6), (5, 6)),
            r"2 of 3 pairs, counted from 0: 0, 2: each has two completions .* same",
        ),
        (PreferenceExample((1,), (5, 6, 7), (5, 6, 8)), r"0, 2: each differs only after preference.max_tokens = 3"),
        (PreferenceExample((1, 2, 3), (5,), (6,)), r"0, 2: each has a prompt of preference.max_tokens = 3 or more"),
        (PreferenceExample((), (5,), (6,)), r"0, 2: each has an empty part"),
        (PreferenceExample((1,), (5,), ()), r"0, 2: each has an empty part"),
    ],
)
def test_pairs_that_say_nothing_are_refused_with_their_places(bad: PreferenceExample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_pairs([bad, pair(1, 1, 1), bad], 3)


def test_a_pair_beyond_the_context_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    pairs = [pair(1020, 3, 5)]
    with pytest.raises(ValueError, match=r"a pair of 1025 tokens, pico-llm takes 1024: lower preference.max_tokens"):
        train_preference(PreferenceSettings("dpo", max_tokens=2000), pairs, make_job(pico_llm, tmp_path / "run"))


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"beta": math.nan}, {"beta": math.inf}, {"max_tokens": 1}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        PreferenceSettings("dpo", **changes)


# scores ---------------------------------------------------------------------------------------------------


def test_a_draw_counts_half() -> None:
    assert prefer(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [3.0, -1.0]])) == 0.625
    with pytest.raises(ValueError, match="no pairs"):
        prefer(score_lengths([]))


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_completions_are_scored_by_their_mean_log_probability(pico_llm: Path, batch_tokens: int) -> None:
    pairs, model = random_pairs(12, 6), load_base(pico_llm)
    scores = score_pairs(DPO, pico_llm, pairs, EngineSettings(batch_tokens=batch_tokens))
    expected = [
        [logprob(model, one.prompt, completion) / len(completion) for completion in (one.chosen, one.rejected)]
        for one in pairs
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_policy_with_broken_weights_is_refused(broken_llm: Path) -> None:
    with pytest.raises(ValueError, match="non-finite log-probabilities"):
        score_pairs(DPO, broken_llm, random_pairs(13, 2), EngineSettings())


def test_training_and_the_engine_pool_a_reward_at_the_same_token(make_llm: Any, tmp_path: Path) -> None:
    """A base without a padding token: what TRL would take (the end of text) is not what engines take."""
    import torch
    from transformers import AutoTokenizer

    base = make_llm(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    end = (2,)
    pairs = [PreferenceExample(one.prompt, one.chosen + end, one.rejected + end + end) for one in random_pairs(14, 6)]
    trainer = trainer_of(REWARD, pairs, make_job(base, tmp_path / "run", "full"))
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        rewards = trainer.model(**batch).logits.reshape(2, -1).T
    trainer.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    np.testing.assert_allclose(score_rewards(tmp_path / "model", pairs, EngineSettings()), rewards, atol=1e-5)
