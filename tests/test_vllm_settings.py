"""Which engine is made, and what vLLM is asked, with a stand-in for vLLM: nothing here starts or needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from kaggle_llm.base.config import load_config, save_config
from kaggle_llm.engines import maker, vllm_engine
from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.maker import make_engine, resolve_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.engines.vllm_engine import VllmEngine, check_vllm_settings, lora_rank, machine_settings

KNOWN = ("model", "dtype", "max_model_len", "gpu_memory_utilization", "enforce_eager", "enable_prefix_caching")


class OldSamplingParams(SimpleNamespace):
    """Of a vLLM without logprob_token_ids."""

    __struct_fields__ = ("max_tokens", "temperature", "logprobs", "allowed_token_ids")


class NewSamplingParams(OldSamplingParams):
    __struct_fields__ = (*OldSamplingParams.__struct_fields__, "logprob_token_ids")


class StandIn:
    """vLLM's LLM, for a model whose next token's logits depend on the prompt's last token only."""

    model_config = SimpleNamespace(max_model_len=10)

    def __init__(self, vocabulary: int = 40) -> None:
        self.logits = np.random.default_rng(0).normal(0, 4, (vocabulary, vocabulary))
        self.asked: list[list[int]] = []

    def logprobs(self, prompt: Sequence[int]) -> np.ndarray:
        logits = self.logits[prompt[-1]]
        return logits - np.log(np.exp(logits).sum())

    def generate(self, prompts: Sequence[Any], how: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        """Log-probabilities are those after the mask; the best token's come on top of those asked for, as in vLLM."""
        assert not use_tqdm and lora_request is None
        self.asked = [prompt["prompt_token_ids"] for prompt in prompts]
        hows = how if isinstance(how, list) else [how] * len(prompts)
        return [self._answer(prompt, one) for prompt, one in zip(self.asked, hows, strict=True)]

    def _answer(self, prompt: Sequence[int], how: Any) -> Any:
        assert how.max_tokens == 1 and how.temperature == 0
        logits = self.logits[prompt[-1]].copy()
        if allowed := getattr(how, "allowed_token_ids", None):
            logits[[token for token in range(len(logits)) if token not in allowed]] = -np.inf
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-logprobs)
        tokens = getattr(how, "logprob_token_ids", None) or best[: how.logprobs].tolist()
        place = {token: SimpleNamespace(logprob=float(logprobs[token])) for token in {int(best[0]), *tokens}}
        return SimpleNamespace(outputs=[SimpleNamespace(logprobs=[place], token_ids=[int(best[0])])])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of that name in the place of vLLM, whether it is installed or not."""
    made = {name: ModuleType(name) for name in ("vllm", "vllm.engine", "vllm.engine.arg_utils", "vllm.config.lora")}
    made["vllm"].__dict__.update(__version__="1.2.3", SamplingParams=NewSamplingParams)
    made["vllm.engine.arg_utils"].__dict__["EngineArgs"] = make_dataclass("EngineArgs", KNOWN)
    made["vllm.config.lora"].__dict__["MaxLoRARanks"] = Literal[1, 8, 16, 32]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in vllm_engine.VLLM_VARIABLES | vllm_engine.T4_VARIABLES:
        monkeypatch.setenv(name, "")  # and so it is put back
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setattr(maker, "find_spec", lambda name: True)
    return made["vllm"]


def engine_with(stand_in: StandIn, folder: Path, **settings: Any) -> VllmEngine:
    engine = VllmEngine(folder, EngineSettings(kind="vllm", **settings))
    engine.__dict__["_llm"] = stand_in
    return engine


def test_vllm_stops_where_transformers_does_and_gets_no_penalty(vllm: Any, pico_llm: Path) -> None:
    asked: list[Any] = []

    class Writer(StandIn):
        def generate(self, prompts: Sequence[Any], how: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
            asked.append(how)
            return [SimpleNamespace(outputs=[]) for _ in prompts]

    engine_with(Writer(), pico_llm).generate([[7], [8]], Sampling(4))
    (how,) = asked
    assert how.stop_token_ids == [load_tokenizer(pico_llm).eos_token_id]
    assert not {"repetition_penalty", "min_p"} & vars(how).keys()


# which engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_auto_is_vllm_where_a_gpu_and_vllm_are(monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: bool) -> None:
    monkeypatch.setattr(maker, "has_gpu", lambda: gpu)
    monkeypatch.setattr(maker, "find_spec", lambda name: installed or None)
    found = resolve_engine(EngineSettings(dtype="float16"))
    assert found == EngineSettings("vllm" if gpu and installed else "transformers", "float16")


def test_transformers_stays_transformers(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "has_gpu", lambda: True)
    assert resolve_engine(EngineSettings("transformers")).kind == "transformers"


def test_vllm_where_it_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed.*engine.kind=auto"):
        resolve_engine(EngineSettings("vllm"))


def test_vllm_serves_causal_models_and_transformers_the_rest(
    vllm: Any, pico_llm: Path, pico_encoder: Path, pico_head: Path
) -> None:
    settings = EngineSettings("vllm")
    assert isinstance(make_engine(pico_llm, settings), VllmEngine)
    assert isinstance(make_engine(pico_encoder, settings), TransformersEngine)
    kind = VllmEngine if pico_head.name.startswith("llama") else TransformersEngine
    assert isinstance(make_engine(pico_head, settings), kind)


def save_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM", "r": 8, **config}))
    return folder


def test_an_adapter_goes_where_its_task_does(vllm: Any, pico_llm: Path, tmp_path: Path) -> None:
    settings = EngineSettings("vllm")
    engine = make_engine(save_adapter(tmp_path / "a"), settings, pico_llm)
    assert isinstance(engine, VllmEngine)
    assert engine._arguments().items() >= {"model": str(pico_llm), "enable_lora": True, "max_lora_rank": 8}.items()
    head = save_adapter(tmp_path / "b", task_type="SEQ_CLS")
    assert isinstance(make_engine(head, settings, pico_llm), TransformersEngine)


def test_an_adapter_and_its_base_go_together(vllm: Any, pico_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an adapter without its base"):
        VllmEngine(save_adapter(tmp_path / "a"), EngineSettings("vllm"))
    with pytest.raises(ValueError, match="holds no adapter for the base"):
        VllmEngine(pico_llm, EngineSettings("vllm"), pico_llm)


@pytest.mark.parametrize(("config", "expected"), [({"r": 8}, 8), ({"r": 9}, 16), ({"rank_pattern": {"q": 20}}, 32)])
def test_the_buffers_of_an_adapter_are_the_smallest_that_fit(
    vllm: Any, tmp_path: Path, config: dict[str, Any], expected: int
) -> None:
    assert lora_rank(save_adapter(tmp_path / "a", **config)) == expected


def test_an_adapter_of_too_large_a_rank_is_refused(vllm: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 33, vLLM serves up to 32: merge it"):
        lora_rank(save_adapter(tmp_path / "a", r=33))


# settings -------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    engine: EngineSettings = field(default_factory=EngineSettings)


def test_settings_of_vllm_are_given_as_key_and_value(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("engine: {kind: vllm, vllm: {max_model_len: 1024, enforce_eager: false}}")
    overrides = ["engine.vllm.max_model_len=2048", "engine.vllm.gpu_memory_utilization=0.5", "engine.dtype=float16"]
    config = load_config(path, Config, overrides)
    expected = {"max_model_len": 2048, "enforce_eager": False, "gpu_memory_utilization": 0.5}
    assert config.engine == EngineSettings("vllm", "float16", vllm=expected)
    save_config(config, path)
    assert load_config(path, Config) == config


def test_an_unknown_setting_names_the_nearest_known_one(vllm: Any) -> None:
    check_vllm_settings({"max_model_len": 1, "enforce_eager": True})
    for refuse in (check_vllm_settings, lambda given: resolve_engine(EngineSettings("vllm", vllm=given))):
        with pytest.raises(ValueError, match=r"vLLM 1.2.3 .*engine.vllm.gpu_memory: .* 'gpu_memory_utilization'\?"):
            refuse({"gpu_memory": 0.5, "max_model_len": 1})


def test_what_the_engine_sets_itself_is_refused(vllm: Any, pico_llm: Path) -> None:
    engine = VllmEngine(pico_llm, EngineSettings("vllm", vllm={"dtype": "half"}))
    with pytest.raises(ValueError, match=r"engine.vllm has \['dtype'\]"):
        engine._arguments()


def test_settings_go_over_what_the_machine_asks_for(vllm: Any, pico_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(**given: Any) -> dict[str, Any]:
        monkeypatch.setattr(vllm_engine, "check_vllm_settings", lambda settings: None)
        return VllmEngine(pico_llm, EngineSettings("vllm", "float16", vllm=given))._arguments()

    monkeypatch.setattr(vllm_engine, "capability", lambda: (7, 5))
    assert arguments()["attention_backend"] == "TRITON_ATTN"
    assert arguments(attention_backend="FLEX_ATTENTION")["attention_backend"] == "FLEX_ATTENTION"
    assert arguments()["dtype"] == "float16" and arguments()["logprobs_mode"] == "raw_logprobs"
    vllm.SamplingParams = OldSamplingParams
    assert arguments()["logprobs_mode"] == "processed_logprobs"


@pytest.mark.parametrize(
    ("capability", "given", "expected"),
    [
        ((7, 5), {}, vllm_engine.T4_SETTINGS),
        ((8, 0), {}, {}),
        (None, {}, vllm_engine.CPU_SETTINGS),
        (None, {"gpu_memory_utilization": 0.5}, {}),
    ],
)
def test_only_a_t4_and_a_cpu_ask_for_settings(
    monkeypatch: pytest.MonkeyPatch, capability: Any, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(vllm_engine, "capability", lambda: capability)
    assert machine_settings(given) == expected


@pytest.mark.parametrize(
    ("free", "given", "expected"),
    [
        (0.95, {}, {}),
        (0.616, {}, {"gpu_memory_utilization": 0.61}),
        (0.616, {"gpu_memory_utilization": 0.3}, {}),
        (None, {}, {}),
    ],
)
def test_vllm_takes_what_others_leave_of_the_card(
    vllm: Any, monkeypatch: pytest.MonkeyPatch, free: float | None, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    vllm_arguments = sys.modules["vllm.engine.arg_utils"]
    monkeypatch.setattr(vllm_arguments.__dict__["EngineArgs"], "gpu_memory_utilization", 0.92, raising=False)
    monkeypatch.setattr(vllm_engine, "measure_free_share", lambda: free)
    assert vllm_engine.share_memory(given) == expected


def test_a_full_card_is_said_before_vllm_starts(vllm: Any, monkeypatch: pytest.MonkeyPatch, pico_llm: Path) -> None:
    engine_arguments = sys.modules["vllm.engine.arg_utils"].__dict__["EngineArgs"]
    monkeypatch.setattr(engine_arguments, "gpu_memory_utilization", 0.92, raising=False)
    monkeypatch.setattr(vllm_engine, "measure_free_share", lambda: -0.01)
    with pytest.raises(MemoryError, match=r"nvidia-smi names the processes.*engine.batch_tokens"):
        VllmEngine(pico_llm, EngineSettings("vllm", "float16"))._arguments()


def test_vllm_is_offline_and_its_log_level_is_the_users(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "capability", lambda: (7, 5))
    vllm_engine.prepare_environment()
    expected = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "NCCL_P2P_DISABLE": "1", "VLLM_CPU_INT4_W4A8": "0"}
    assert os.environ.items() >= (expected | {"VLLM_LOGGING_LEVEL": "DEBUG"}).items()


# exact choices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [NewSamplingParams, OldSamplingParams])
def test_choices_are_over_the_whole_vocabulary_whatever_vllm_can(vllm: Any, pico_llm: Path, sampling: type) -> None:
    """A label may be the best token itself, or the worst of all."""
    vllm.SamplingParams = sampling
    llm = StandIn()
    prompts = [[3, 7], [1, 2, 3], [9], [3, 7], [1, 2, 8]]
    best, worst = int(llm.logits[7].argmax()), int(llm.logits[7].argmin())
    labels = [5, best, 31, worst]
    found = engine_with(llm, pico_llm).choices(prompts, [[label] for label in labels])
    np.testing.assert_allclose(found, [llm.logprobs(prompt)[labels] for prompt in prompts], atol=1e-12, rtol=0)
    assert llm.asked == sorted(prompts), "neighbours share prefixes"


@pytest.mark.parametrize("sampling", [NewSamplingParams, OldSamplingParams])
def test_a_label_of_several_tokens_is_scored_by_all_of_them(vllm: Any, pico_llm: Path, sampling: type) -> None:
    vllm.SamplingParams = sampling
    llm = StandIn()
    prompts = [[3, 7], [1, 2, 3], [9]]
    found = engine_with(llm, pico_llm).choices(prompts, [[5], [5, 6], [8, 5, 4]])
    for prompt, (one, two, three) in zip(prompts, found, strict=True):
        first = llm.logprobs(prompt)
        assert one == pytest.approx(first[5])
        assert two == pytest.approx(first[5] + llm.logprobs([5])[6])  # the stand-in looks at the last token alone
        assert three == pytest.approx(first[8] + llm.logprobs([8])[5] + llm.logprobs([5])[4])


def test_a_score_that_is_no_number_stops(vllm: Any, pico_llm: Path) -> None:
    llm = StandIn()
    llm.logits[7, 5] = np.nan
    with pytest.raises(ValueError, match="2 non-finite of 4 scores"):
        engine_with(llm, pico_llm).choices([[3, 7], [9]], [[5], [6]])


def test_labels_and_prompts_that_do_not_fit_are_refused(vllm: Any, pico_llm: Path) -> None:
    engine = engine_with(StandIn(), pico_llm)
    with pytest.raises(ValueError, match="one has no token"):
        engine.choices([[7]], [[5], []])
    for length in (0, 10):  # of ten places one is for the answer
        with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens.* 1 to 9: set prompt.budgets"):
            engine.choices([[7], [7] * length], [[5]])
    assert engine.choices([], [[5], [6]]).shape == (0, 2)


@pytest.mark.parametrize(("kind", "task"), [("Sequence", "classify"), ("Token", "token_classify")])
def test_a_head_is_asked_for_raw_logits_in_sorted_order(vllm: Any, tmp_path: Path, kind: str, task: str) -> None:
    from safetensors.numpy import save_file

    config = {"architectures": [f"LlamaFor{kind}Classification"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"score.weight": np.zeros((3, 4), np.float32)}, tmp_path / "model.safetensors")
    vllm.PoolingParams = SimpleNamespace
    asked: list[Any] = []

    class Pooler(StandIn):
        def encode(self, prompts: Sequence[Any], how: Any, pooling_task: str, use_tqdm: bool) -> list[Any]:
            asked.append((prompts, how.use_activation, pooling_task))
            return [SimpleNamespace(outputs=SimpleNamespace(data=torch.tensor(p["prompt_token_ids"]))) for p in prompts]

    import torch

    engine = engine_with(Pooler(), tmp_path, dtype="float32")
    assert [row.tolist() for row in engine.logits([[9, 1], [7], [8]])] == [[9, 1], [7], [8]]
    assert asked == [([{"prompt_token_ids": ids} for ids in ([7], [8], [9, 1])], False, task)]
    assert engine._arguments().items() >= {"runner": "pooling", "dtype": "float32"}.items()
    with pytest.raises(ValueError, match=r"prompt 0 has 11 tokens.* 1 to 10"):
        engine.logits([[7] * 11])


def test_a_sentence_encoder_is_asked_for_vectors_in_sorted_order_and_scaled(vllm: Any, pico_encoder: Path) -> None:
    class Pooler(StandIn):
        def embed(self, prompts: Sequence[Any], use_tqdm: bool) -> list[Any]:
            self.asked = [prompt["prompt_token_ids"] for prompt in prompts]
            return [SimpleNamespace(outputs=SimpleNamespace(embedding=[ids[0], ids[-1]])) for ids in self.asked]

    pooler = Pooler()
    engine = engine_with(pooler, pico_encoder, dtype="float32")
    vectors = engine.embed([[4, 3], [3, 4], [1, 0]])
    np.testing.assert_allclose(vectors, [[0.8, 0.6], [0.6, 0.8], [1.0, 0.0]], atol=1e-6)
    assert pooler.asked == [[1, 0], [3, 4], [4, 3]] and engine._arguments()["runner"] == "pooling"
    with pytest.raises(ValueError, match=r"prompt 0 has 11 tokens.* 1 to 10"):
        engine.embed([[7] * 11])


def test_the_embedder_is_a_setting_of_its_own(vllm: Any, pico_llm: Path, pico_encoder: Path) -> None:
    settings = EngineSettings("transformers", embedder="vllm")
    assert isinstance(make_engine(pico_encoder, settings), VllmEngine)
    assert isinstance(make_engine(pico_llm, settings), TransformersEngine)


def test_vectors_and_what_has_no_head_are_for_transformers(vllm: Any, pico_llm: Path) -> None:
    engine = engine_with(StandIn(), pico_llm)
    for ask in (engine.embed, engine.logits):
        with pytest.raises(NotImplementedError, match=r"engine.kind=transformers"):
            ask([[7]])
