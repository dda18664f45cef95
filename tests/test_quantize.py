from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import forks
import pytest

from kaggle_llm.base import records
from kaggle_llm.weights.quantize import GROUP_SIZES, QuantizeSettings, check_group_size, list_linear_layers, quantize

GPTQ = QuantizeSettings(scheme="gptq", group_size=32)
PROMPTS = [[1, 2, 3], [4, 5]]
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

# What llm-compressor leaves, as far as the caller looks at it: fp32 weights under other names.
STAND_IN = """
import json, pathlib, sys
import torch
from safetensors.torch import load_file, save_file
job = json.loads(pathlib.Path(sys.argv[2]).read_text())
model, output = pathlib.Path(job["model"]), pathlib.Path(job["output"])
print("Loading weights:  50%|#####     | 5/10", end="\\r")
print("(1/2): Calibrating: 100%|##########| 5/5")
print("(1/2): Propagating: 100%|##########| 5/5", end="\\r")
print("(1/2): Propagating: 100%|##########| 5/5")
output.mkdir()
weights = load_file(model / "model.safetensors")
for name in [name for name in weights if "_proj" in name]:
    weights[name + "_scale"] = weights.pop(name)[:, :1].contiguous()
config = json.loads((model / "config.json").read_text())
config["quantization_config"] = {"quant_method": "compressed-tensors"}
EDIT
save_file(weights, output / "model.safetensors")
(output / "config.json").write_text(json.dumps(config))
(output / "tokenizer.json").write_text("another")
(output / "generation_config.json").write_text("another")
pathlib.Path(job["versions"]).write_text(json.dumps({"llmcompressor": "0.0"}))
"""


def write_headers(folder: Path, shapes: dict[str, list[int]]) -> Path:
    """A checkpoint whose tensors are a hole in the file: only its headers can be read."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return folder


def layer(name: str) -> str:
    return f"model.layers.0.{name}.weight"


@pytest.fixture
def smol(tmp_path: Path) -> Path:
    """The shapes of a layer of SmolLM2-135M."""
    shapes = {layer("self_attn.q_proj"): [576, 576], layer("mlp.down_proj"): [576, 1536]}
    return write_headers(tmp_path / "smol", {"model.embed_tokens.weight": [49152, 576], **shapes})


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """The shapes of a layer of Qwen2.5-72B."""
    shapes = {layer("self_attn.q_proj"): [8192, 8192], layer("mlp.down_proj"): [8192, 29568]}
    return write_headers(tmp_path / "qwen", shapes)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """environment(edit): a repository whose .venv-quantise runs STAND_IN with a line of code in its middle."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))

    def make(edit: str = "") -> None:
        (tmp_path / "stand_in.py").write_text(STAND_IN.replace("EDIT", edit))
        python = tmp_path / ".venv-quantise" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{forks.python()}" "{tmp_path}/stand_in.py" "$@"\n')
        python.chmod(0o755)

    return make


# group sizes ------------------------------------------------------------------------------------------------


def test_576_columns_take_no_group_of_128_but_of_64(smol: Path) -> None:
    with pytest.raises(ValueError) as error:
        check_group_size(smol, QuantizeSettings(scheme="gptq", group_size=128))
    assert "1 of 2 linear layers" in str(error.value) and "q_proj (576 columns)" in str(error.value)
    assert "set quantize.group_size=64" in str(error.value)
    check_group_size(smol, QuantizeSettings(scheme="gptq", group_size=64))


def test_29568_columns_on_two_gpus_take_no_group_of_128_but_of_64(qwen: Path) -> None:
    check_group_size(qwen, QuantizeSettings(scheme="awq", group_size=128))  # 29568 = 231 · 128 on one GPU
    with pytest.raises(ValueError, match=r"down_proj \(29568 / 2 GPUs columns\); set quantize.group_size=64"):
        check_group_size(qwen, QuantizeSettings(scheme="awq", group_size=128, tensor_parallel_size=2))
    check_group_size(qwen, QuantizeSettings(scheme="awq", group_size=64, tensor_parallel_size=2))


def test_where_no_group_fits_the_layers_can_be_ignored(tmp_path: Path) -> None:
    odd = write_headers(tmp_path / "odd", {layer("mlp.down_proj"): [64, 100], layer("self_attn.q_proj"): [64, 64]})
    with pytest.raises(ValueError, match="no size fits: add them to"):
        check_group_size(odd, GPTQ)
    check_group_size(odd, QuantizeSettings(scheme="gptq", group_size=64, ignore=["re:.*down_proj"]))


def test_one_scale_a_row_needs_no_group(smol: Path) -> None:
    check_group_size(smol, QuantizeSettings(scheme="smoothquant", group_size=128))


def test_linear_layers_are_those_of_the_model(pico_llm: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pico_llm)
    linear = {n: m.in_features for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert list_linear_layers(pico_llm, ["lm_head"]) == linear


@pytest.mark.parametrize(("name", "value"), [("group_size", 48), ("rows", 0), ("tensor_parallel_size", 0)])
def test_settings_that_cannot_work_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        QuantizeSettings(**{name: value})


# the process ------------------------------------------------------------------------------------------------


def test_folder_is_complete_and_knows_its_parent(
    pico_llm: Path, tmp_path: Path, environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environment()
    model = shutil.copytree(pico_llm, tmp_path / "model")
    quantize(model, ["a", "b"], PROMPTS, GPTQ, tmp_path / "made", seed=3)
    for name in COPIED:
        assert (tmp_path / "made" / name).read_bytes() == (model / name).read_bytes()
    assert "quantization_config" in records.read_json(tmp_path / "made" / "config.json")
    about = records.read_json(tmp_path / "made" / records.WEIGHTS)
    assert about["stage"] == "quantised" and about["parents"] == {"model": "model"} and about["seed"] == 3
    assert about["calibration"] == ["a", "b"] and about["settings"]["group_size"] == 32
    assert about["versions"] == {"llmcompressor": "0.0"} and about["seconds"] > 0
    assert not [path for path in (tmp_path / "made").iterdir() if path.name.startswith(".")]
    assert capsys.readouterr().err == "quantising: part 1/2 done\n"


FAILURES = {
    "sys.exit('out of memory')": (RuntimeError, "failed with exit code 1:\n(?s:.*)out of memory"),
    "del config['quantization_config']": (ValueError, "quant_method None"),
    "weights.pop('model.layers.1.mlp.up_proj.weight_scale')": (
        ValueError,
        "1 of 14 .*first model.layers.1.mlp.up_proj",
    ),
    "weights['model.layers.0.mlp.up_proj.weight_scale'][3] = torch.nan": (
        ValueError,
        "up_proj.weight_scale is not fin",
    ),
}


FIRST, *OTHERS = FAILURES


@pytest.mark.parametrize("edit", [FIRST, *(pytest.param(edit, marks=pytest.mark.slow) for edit in OTHERS)])
def test_a_failure_leaves_no_folder(
    pico_llm: Path, tmp_path: Path, environment: Callable[[str], None], edit: str
) -> None:
    environment(edit)
    (tmp_path / "models").mkdir()
    kind, message = FAILURES[edit]
    with pytest.raises(kind, match=message):
        quantize(pico_llm, ["a", "b"], PROMPTS, GPTQ, tmp_path / "models" / "made", seed=0)
    assert not list((tmp_path / "models").iterdir())


def test_without_the_environment_the_way_out_is_said(
    pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run `make quantise`"):
        quantize(pico_llm, ["a", "b"], PROMPTS, GPTQ, tmp_path / "made", seed=0)
    assert not list(tmp_path.iterdir())


# sources ----------------------------------------------------------------------------------------------------


def refuse(model: Path, message: str, settings: QuantizeSettings = GPTQ) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(model, ["a", "b"], PROMPTS, settings, model.with_name("made"), seed=0)
    assert not model.with_name("made").exists()


def test_a_quantised_source_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    model = shutil.copytree(pico_llm, tmp_path / "model")
    config = records.read_json(model / "config.json")
    records.write_json(model / "config.json", config | {"quantization_config": {"quant_method": "gptq"}})
    refuse(model, r"quantised already \(gptq\)")


def test_an_adapter_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    model = shutil.copytree(pico_llm, tmp_path / "model")
    records.write_json(model / records.ADAPTER, {})
    refuse(model, "is an adapter: merge it")


@pytest.mark.parametrize("pico_head", ["bert-sequence"], indirect=True)
def test_an_encoder_with_a_head_is_refused(pico_head: Path, tmp_path: Path) -> None:
    refuse(shutil.copytree(pico_head, tmp_path / "model"), "is BertForSequenceClassification")


@pytest.mark.parametrize("pico_head", ["llama-sequence"], indirect=True)
def test_of_a_causal_model_with_a_head_the_body_is_quantised(
    pico_head: Path, tmp_path: Path, environment: Callable[[str], None]
) -> None:
    environment("config['told'] = job['ignore']")
    quantize(pico_head, ["a", "b"], PROMPTS, GPTQ, tmp_path / "made", seed=0)
    told = records.read_json(tmp_path / "made" / "config.json")["told"]
    layers = list_linear_layers(pico_head, ["lm_head"])
    assert told == ["lm_head", "score"] and len(layers) == 14 and "score" not in layers


def test_a_group_that_does_not_fit_is_refused_before_the_process_starts(pico_llm: Path, tmp_path: Path) -> None:
    refuse(shutil.copytree(pico_llm, tmp_path / "model"), "group_size=64", QuantizeSettings(scheme="gptq"))


def test_nothing_to_calibrate_on_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    for ids, prompts in ([], []), (["a"], PROMPTS), (["a", "b"], [[1], []]):
        with pytest.raises(ValueError, match="each row needs one prompt"):
            quantize(pico_llm, ids, prompts, GPTQ, tmp_path / "made", seed=0)


def test_no_scheme_is_refused(pico_llm: Path) -> None:
    refuse(pico_llm, "quantize.scheme = none", QuantizeSettings())


def test_proposals_go_from_the_largest_on() -> None:
    assert sorted(GROUP_SIZES, reverse=True) == list(GROUP_SIZES)
