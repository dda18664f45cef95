"""The average of adapters adds the mean of what its members add; what a method loses is what is lost.

The reference is PEFT's own delta of every member, in fp64, and numpy's SVD of the whole matrix.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.base import records
from kaggle_llm.experiment.experiment import check_adapters
from kaggle_llm.weights.average import AverageSettings, average_adapters
from kaggle_llm.weights.merge import merge_adapter

if TYPE_CHECKING:
    import numpy as np
    import torch

FILE = "adapter_model.safetensors"
EXACT = AverageSettings()
TOKENS = list(range(6, 38))
SOME = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
HEAD = {**SOME, "task_type": "SEQ_CLS"}
CASES: dict[str, list[dict[str, Any]]] = {  # the members' LoraConfig
    "alike": [SOME, SOME, SOME],
    "other ranks and alphas": [SOME, {**SOME, "r": 2, "lora_alpha": 16}, {**SOME, "r": 7, "lora_alpha": 3}],
    "rslora beside plain": [{**SOME, "use_rslora": True}, SOME],
    "patterns": [
        {**SOME, "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.down_proj": 3}, "alpha_pattern": {"v_proj": 20}},
        {**SOME, "use_rslora": True, "alpha_pattern": {r"layers\.[02].*q_proj": 1}},
    ],
    "embedding": [{**SOME, "target_modules": ["embed_tokens", "q_proj"]}] * 2,
    "embedding in one": [{**SOME, "target_modules": ["embed_tokens", "q_proj"]}, SOME],
    "other matrices": [
        {**SOME, "target_modules": ["q_proj", "k_proj"]},
        {**SOME, "target_modules": ["q_proj", "up_proj"]},
    ],
    "other layers": [
        {**SOME, "target_modules": "all-linear", "exclude_modules": r".*layers\.3\..*"},
        {**SOME, "layers_to_transform": [1, 3]},
    ],
    "more rank than columns": [{**SOME, "r": 60}, {**SOME, "r": 50}],
    "head": [HEAD, {**HEAD, "r": 3}],
    "module trained whole": [{**SOME, "modules_to_save": ["o_proj", "norm"]}] * 2,
}


@pytest.fixture(scope="module")
def base(make_llm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers: PEFT shortens long lists of modules, and a pattern can mean some of them."""
    return make_llm(tmp_path_factory.mktemp("average") / "base", num_hidden_layers=4)


def load(base: Path, task_type: str) -> Any:
    import torch
    import transformers

    head = task_type == "SEQ_CLS"
    maker = transformers.AutoModelForSequenceClassification if head else transformers.AutoModelForCausalLM
    torch.manual_seed(5)
    return maker.from_pretrained(base, dtype=torch.float32, **({"num_labels": 3} if head else {}))


MADE: dict[str, Path] = {}  # members by what they are made of: most tests ask for the same ones


def make_member(base: Path, folder: Path, seed: int, dtype: str = "float32", **config: Any) -> Path:
    """An adapter with random factors, and other random weights for what is trained whole."""
    key = json.dumps([str(base), seed, dtype, config], sort_keys=True)
    if key not in MADE:
        MADE[key] = train_member(base, base.parent / f"member{len(MADE)}", seed, dtype, **config)
    return shutil.copytree(MADE[key], folder)


def train_member(base: Path, folder: Path, seed: int, dtype: str, **config: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    config = {"task_type": "CAUSAL_LM", **config}
    model = get_peft_model(load(base, config["task_type"]), LoraConfig(**config))
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = (torch.randn_like(weight) * 0.1).to(getattr(torch, dtype))
    model.get_base_model().config.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def make_members(base: Path, folder: Path, configs: Sequence[dict[str, Any]]) -> list[Path]:
    return [make_member(base, folder / f"fold{k}", seed=k, **config) for k, config in enumerate(configs)]


@pytest.fixture
def members(base: Path, tmp_path: Path) -> list[Path]:
    return make_members(base, tmp_path, [SOME, SOME])


def read_config(folder: Path) -> Any:
    return records.read_json(folder / "adapter_config.json")


def change_config(folder: Path, **changes: Any) -> None:
    records.write_json(folder / "adapter_config.json", read_config(folder) | changes)


def change_tensors(folder: Path, change: Callable[[dict[str, "torch.Tensor"]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def attach(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base, read_config(adapter)["task_type"]), adapter).eval()


def deltas(base: Path, adapter: Path) -> dict[str, "torch.Tensor"]:
    return deltas_of(attach(base, adapter))


def deltas_of(attached: Any) -> dict[str, "torch.Tensor"]:
    """Module → what PEFT adds to its weight, fp64, which the model is afterwards."""
    from peft.tuners.lora import LoraLayer

    model = attached.double().get_base_model()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


def whole(adapter: Path) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load_file

    tensors = load_file(adapter / FILE)
    return {name.removeprefix("base_model.model."): weight for name, weight in tensors.items() if "lora_" not in name}


def mean(members: Sequence[Mapping[str, "torch.Tensor"]]) -> dict[str, "torch.Tensor"]:
    """By name; a member without it counts as zero, for PEFT's copy of a base weight not at all."""
    names = {name for member in members for name in member}
    found = {name: [member[name].double() for member in members if name in member] for name in names}
    return {name: sum(own) / (len(own) if "base_layer" in name else len(members)) for name, own in found.items()}


def predict(model: Any) -> "torch.Tensor":
    import torch

    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def literal_logits(
    base: Path, adapters: Sequence[Path], added: Mapping[str, "torch.Tensor"] | None = None
) -> "torch.Tensor":
    """Of the base, to whose weights the mean of deltas is added; LoRA on the embedding leaves the tied output alone."""
    import torch

    model = load(base, read_config(adapters[0])["task_type"]).eval()
    if hasattr(model, "lm_head"):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    weights = model.state_dict()
    for name, tensor in mean([whole(adapter) for adapter in adapters]).items():
        weights[name.replace(".base_layer", "")].copy_(tensor)
    for name, delta in (added or mean([deltas(base, adapter) for adapter in adapters])).items():
        weights[f"{name}.weight"].add_(delta)
    return predict(model)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    scale = float(abs(expected).max())
    assert float(abs(found - expected).max()) <= tolerance * scale, f"{abs(found - expected).max()} of {scale}"


@pytest.mark.parametrize("case", CASES)
def test_the_exact_average_adds_the_mean_of_the_deltas_and_gives_its_logits(
    case: str, base: Path, tmp_path: Path
) -> None:
    """As PEFT attaches it, and the members."""
    adapters = make_members(base, tmp_path, CASES[case])
    average_adapters(adapters, tmp_path / "average", EXACT)
    first, average = attach(base, adapters[0]), attach(base, tmp_path / "average")
    of_first, of_average = predict(first), predict(average)
    expected = mean([deltas_of(first), *(deltas(base, adapter) for adapter in adapters[1:])])
    found = deltas_of(average)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], 1e-6)
    trained, averaged = mean([whole(adapter) for adapter in adapters]), whole(tmp_path / "average")
    assert averaged.keys() == trained.keys()
    assert all((averaged[name] == trained[name].float()).all() for name in trained)
    literal = literal_logits(base, adapters, expected)
    assert_close(of_average, literal, 2e-5)
    assert abs(literal - of_first).max() > 0.01


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("case", ["patterns", "other layers", "head"])
def test_the_average_merges_into_the_base(case: str, base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, CASES[case])
    average_adapters(adapters, tmp_path / "average", EXACT)
    merge_adapter(base, tmp_path / "average", tmp_path / "merged")
    merged = load(tmp_path / "merged", CASES[case][0].get("task_type", "CAUSAL_LM")).eval()
    assert_close(predict(merged), literal_logits(base, adapters), 2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_members_in_half_precision_are_averaged_in_full(dtype: str, base: Path, tmp_path: Path) -> None:
    adapters = [make_member(base, tmp_path / f"fold{k}", k, dtype, **SOME) for k in range(3)]
    average_adapters(adapters, tmp_path / "average", EXACT)
    expected, found = mean([deltas(base, adapter) for adapter in adapters]), deltas(base, tmp_path / "average")
    for name in expected:
        assert_close(found[name], expected[name], 1e-6)
    from safetensors.torch import load_file

    assert {str(tensor.dtype) for tensor in load_file(adapters[0] / FILE).values()} == {f"torch.{dtype}"}
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "average" / FILE).values()} == {"torch.float32"}


@pytest.mark.parametrize(
    "settings", [EXACT, AverageSettings("svd", 4), AverageSettings("factors")], ids=lambda settings: settings.method
)
def test_an_adapter_averaged_with_itself_is_itself(settings: AverageSettings, base: Path, tmp_path: Path) -> None:
    adapter = make_member(base, tmp_path / "fold0", seed=0, **SOME)
    average_adapters([adapter] * 3, tmp_path / "average", settings)
    expected = predict(attach(base, adapter))
    assert_close(predict(attach(base, tmp_path / "average")), expected, 2e-5)
    assert abs(expected - predict(load(base, "CAUSAL_LM").eval())).max() > 0.01


def singular_values(matrix: "torch.Tensor", rank: int) -> tuple["np.ndarray", "np.ndarray"]:
    """(all σ of a matrix, its nearest matrix of `rank`) by numpy."""
    import numpy as np

    u, values, v = np.linalg.svd(matrix.numpy())
    return values, (u[:, :rank] * values[:rank]) @ v[:rank]


@pytest.mark.parametrize(
    ("case", "rank"),
    [
        *[("alike", 1), ("alike", 8), ("patterns", 5), ("embedding", 5), ("other matrices", 8)],
        ("more rank than columns", 5),
    ],
)
def test_svd_keeps_the_energy_that_numpy_finds(case: str, rank: int, base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, CASES[case])
    average_adapters(adapters, tmp_path / "average", AverageSettings("svd", rank))
    found, figures = (
        deltas(base, tmp_path / "average"),
        records.read_json(tmp_path / "average" / "weights.json")["average"],
    )
    energies, kept, total = {}, 0.0, 0.0
    for name, matrix in mean([deltas(base, adapter) for adapter in adapters]).items():
        values, nearest = singular_values(matrix, rank)
        assert_close(found[name].numpy(), nearest, 1e-5)
        energies[name] = (values[:rank] ** 2).sum() / (values**2).sum()
        kept, total = kept + (values[:rank] ** 2).sum(), total + (values**2).sum()
    assert figures["matrices"] == pytest.approx(energies, rel=1e-9)
    assert figures["kept_energy"] == pytest.approx(kept / total, rel=1e-9)
    assert figures["worst"]["kept_energy"] == pytest.approx(min(energies.values()), rel=1e-9)
    assert energies[figures["worst"]["matrix"]] == pytest.approx(min(energies.values()), rel=1e-9)


def test_svd_gives_a_matrix_that_one_member_adapts_no_more_rank_than_it_has(base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, CASES["other matrices"])
    average_adapters(adapters, tmp_path / "average", AverageSettings("svd", 6))
    config = read_config(tmp_path / "average")
    assert (config["r"], config["lora_alpha"], set(config["rank_pattern"].values())) == (6, 6, {4})
    assert len(config["rank_pattern"]) == 8  # k_proj and up_proj of four layers


def test_an_odd_rank_is_attached_where_members_began_with_pairs_of_columns(base: Path, tmp_path: Path) -> None:
    """PEFT's orthogonal initialisation refuses odd ranks, also when it opens a folder that says so."""
    adapters = make_members(base, tmp_path, [{**SOME, "init_lora_weights": "orthogonal"}] * 2)
    average_adapters(adapters, tmp_path / "average", AverageSettings("svd", 3))
    assert {matrix.shape for matrix in deltas(base, tmp_path / "average").values()} == {(64, 64), (32, 64), (64, 128)}


def test_an_untrained_matrix_loses_nothing(base: Path, members: list[Path], tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    for member in members:
        change_tensors(member, lambda tensors: tensors[name].zero_())
    for settings, expected in ((AverageSettings("svd", 2), 1.0), (AverageSettings("factors"), 0.0)):
        average_adapters(members, tmp_path / "average", settings)
        figures = records.read_json(tmp_path / "average" / "weights.json")["average"]
        assert figures["matrices"]["model.layers.0.self_attn.q_proj"] == expected
        assert 0.01 < figures["matrices"]["model.layers.1.self_attn.q_proj"] < 2 and figures["worst"]["matrix"] != name


@pytest.mark.parametrize("drift", [0.05, 1.0])
def test_factors_are_off_by_the_error_that_is_reported(
    drift: float, base: Path, members: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mean(B)·mean(A) from tensors, against mean(B·A); members that drift little from one start are off by little."""
    import torch
    from safetensors.torch import load_file

    start = load_file(members[0] / FILE)
    change_tensors(members[1], lambda own: own.update({k: torch.lerp(start[k], own[k], drift) for k in own}))
    average_adapters(members, tmp_path / "average", AverageSettings("factors"))
    both = [{name: weight.double() for name, weight in load_file(member / FILE).items()} for member in members]
    found, figures = (
        deltas(base, tmp_path / "average"),
        records.read_json(tmp_path / "average" / "weights.json")["average"],
    )
    errors, missed, total = {}, 0.0, 0.0
    for name, exact in mean([deltas(base, member) for member in members]).items():
        a, b = (sum(one[f"base_model.model.{name}.lora_{k}.weight"] for one in both) / 2 for k in "AB")
        literal = 8 / 4 * b @ a
        assert_close(found[name], literal, 1e-6)
        errors[name] = ((literal - exact).norm() / exact.norm()).item()
        missed, total = missed + (literal - exact).square().sum().item(), total + exact.square().sum().item()
    assert figures["matrices"] == pytest.approx(errors, rel=1e-6)
    assert figures["relative_error"] == pytest.approx((missed / total) ** 0.5, rel=1e-6)
    worst = max(errors, key=errors.__getitem__)
    assert figures["worst"] == {"matrix": worst, "relative_error": pytest.approx(errors[worst], rel=1e-6)}
    assert worst in capsys.readouterr().out
    assert (figures["relative_error"] < 0.01) == (drift < 0.1)


def test_the_folder_is_an_adapter_that_knows_its_parents(
    base: Path, members: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"stage": "adapter", "parents": {"base": "input/models/pico"}, "base_sha256": "ab", "method": "qlora"}
    for member, dtype in zip(members, ("float32", "bfloat16"), strict=True):
        records.write_json(member / "weights.json", {**about, "dtype": dtype})
    average_adapters(members, tmp_path / "average", AverageSettings("svd", 3))
    assert {path.name for path in (tmp_path / "average").iterdir()} == {
        *("adapter_config.json", FILE, "config.json", "weights.json")
    }
    assert (tmp_path / "average" / "config.json").read_bytes() == (members[0] / "config.json").read_bytes()
    found = records.read_json(tmp_path / "average" / "weights.json")
    figures = found.pop("average")
    parents = {"base": "input/models/pico", "member0": str(members[0]), "member1": str(members[1])}
    assert found == {"stage": "adapter", "parents": parents, "base_sha256": "ab", "method": "qlora"}
    assert (figures["method"], figures["rank"]) == ("svd", 3)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert f"{figures['kept_energy']:.2%}" in printed and figures["worst"]["matrix"] in printed


def test_an_adapter_of_others_has_the_base_of_its_config_as_parent(
    base: Path, members: list[Path], tmp_path: Path
) -> None:
    (members[0] / "config.json").unlink()
    average_adapters(members, tmp_path / "average", EXACT)
    found = records.read_json(tmp_path / "average" / "weights.json")
    assert found["parents"]["base"] == str(base) and "base_sha256" not in found
    assert not (tmp_path / "average" / "config.json").exists()


def test_an_average_can_be_a_member(base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, CASES["patterns"] * 2)
    for k in (0, 2):
        average_adapters(adapters[k : k + 2], tmp_path / f"half{k}", EXACT)
    average_adapters([tmp_path / "half0", tmp_path / "half2"], tmp_path / "average", EXACT)
    expected, found = mean([deltas(base, adapter) for adapter in adapters]), deltas(base, tmp_path / "average")
    for name in expected:
        assert_close(found[name], expected[name], 1e-6)


# what is refused --------------------------------------------------------------------------------------------


def refuse(adapters: Sequence[Path], folder: Path, message: str, settings: AverageSettings = EXACT) -> str:
    """The message, which must match; nothing is left."""
    with pytest.raises(ValueError, match=message) as refused:
        average_adapters(adapters, folder, settings)
    assert not folder.exists() and not list(folder.parent.glob(".*"))
    return str(refused.value)


REFUSED = {  # LoraConfig of the second member → the message
    "dora": ({"use_dora": True}, "use_dora.*average the merged models"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "bias": ({"bias": "all"}, "bias"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the base"),
    "task": ({"task_type": "FEATURE_EXTRACTION"}, 'task_type, "CAUSAL_LM" and "FEATURE_EXTRACTION"'),
    "whole": ({"modules_to_save": ["o_proj"]}, r'modules_to_save, \[\] and \["o_proj"\]'),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_member_whose_delta_is_no_mean_of_factors_is_refused(kind: str, base: Path, tmp_path: Path) -> None:
    config, message = REFUSED[kind]
    adapters = make_members(base, tmp_path, [SOME, {**SOME, **config}])
    assert str(adapters[1]) in refuse(adapters, tmp_path / "average", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "'LOHA': only LoRA"),
        (
            {"base_model_name_or_path": "other"},
            'base_model_name_or_path, ".*" and "other": average adapters of one base',
        ),
        ({"r": 8}, r"down_proj has factors of shape \[4, 128\] and \[64, 4\], adapter_config.json says rank 8"),
        ({"kasa_config": {"beta": 1}}, "was trained with kasa_config"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_belong_is_refused(
    changes: dict[str, Any], message: str, members: list[Path], tmp_path: Path
) -> None:
    change_config(members[1], **changes)
    assert str(members[1]) in refuse(members, tmp_path / "average", message)


def test_members_that_were_trained_on_other_weights_are_refused(members: list[Path], tmp_path: Path) -> None:
    third = shutil.copytree(members[0], tmp_path / "fold2")
    for member, known in ((members[1], "ab"), (third, "cd")):  # the first does not know
        records.write_json(member / "weights.json", {"stage": "adapter", "base_sha256": known})
    message = refuse([*members, third], tmp_path / "average", 'base_sha256, "ab" and "cd"')
    assert str(members[1]) in message and str(third) in message


def test_members_with_labels_in_another_order_are_refused(base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, [HEAD, HEAD])
    for adapter, names in zip(adapters, ("abc", "acb"), strict=True):
        config = records.read_json(adapter / "config.json")
        records.write_json(adapter / "config.json", config | {"id2label": dict(enumerate(names))})
    refuse(adapters, tmp_path / "average", "differ in id2label")


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_members_are_refused(count: int, members: list[Path], tmp_path: Path) -> None:
    refuse(members[:count], tmp_path / "average", rf"{count} adapter\(s\) to average")


def test_other_shapes_are_refused(
    base: Path, make_llm: Callable[..., Path], members: list[Path], tmp_path: Path
) -> None:
    other = make_member(make_llm(tmp_path / "other", intermediate_size=96), tmp_path / "fold2", 2, **SOME)
    change_config(other, base_model_name_or_path=str(base))
    message = refuse([*members, other], tmp_path / "average", r"down_proj is \[64, 128\] in .* and \[64, 96\] in")
    assert str(members[0]) in message and str(other) in message


def test_heads_of_other_sizes_are_refused(base: Path, tmp_path: Path) -> None:
    import torch

    adapters = make_members(base, tmp_path, [HEAD, HEAD])
    change_tensors(adapters[1], lambda own: own.update({"base_model.model.score.weight": torch.ones(5, 64)}))
    refuse(adapters, tmp_path / "average", r"score.weight is \[3, 64\] in .* and \[5, 64\] in")


def test_a_head_that_one_member_lacks_is_refused(base: Path, tmp_path: Path) -> None:
    adapters = make_members(base, tmp_path, [HEAD, HEAD])
    change_tensors(adapters[1], lambda tensors: tensors.pop("base_model.model.score.weight"))
    refuse(adapters, tmp_path / "average", r"score.weight was trained whole in only one of")


@pytest.mark.parametrize("part", ["q_proj.lora_A", "q_proj.lora_B", "score"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_with_member_and_tensor(
    part: str, value: float, base: Path, tmp_path: Path
) -> None:
    adapters = make_members(base, tmp_path, [HEAD, HEAD])

    def break_one(tensors: dict[str, "torch.Tensor"]) -> None:
        next(tensor for name, tensor in tensors.items() if part in name)[-1, -1] = value

    change_tensors(adapters[1], break_one)
    message = refuse(adapters, tmp_path / "average", rf"non-finite values in \S*{re.escape(part)}")
    assert str(adapters[1]) in message


def test_tensors_without_a_partner_are_refused(members: list[Path], tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"
    change_tensors(members[1], lambda tensors: tensors.pop(name))
    assert str(members[1]) in refuse(members, tmp_path / "average", f"lacks {name}")
    change_tensors(members[0], lambda tensors: tensors.pop(name.replace("_B", "_A")))
    assert str(members[0]) in refuse(members, tmp_path / "average", f"{name}, which belongs to no pair")


@pytest.mark.parametrize("damage", ["truncated", "no header", "empty"])
def test_broken_files_are_refused(damage: str, members: list[Path], tmp_path: Path) -> None:
    content = (members[1] / FILE).read_bytes()
    damaged = {"truncated": content[:-100], "no header": b"\0" * 100 + content, "empty": b""}[damage]
    (members[1] / FILE).write_bytes(damaged)
    assert str(members[1] / FILE) in refuse(members, tmp_path / "average", "truncated or no safetensors file")


def test_a_pickle_is_refused(members: list[Path], tmp_path: Path) -> None:
    (members[1] / FILE).rename(members[1] / "adapter_model.bin")
    message = refuse(members, tmp_path / "average", r"holds adapter_model.bin, a pickle: save it again as safetensors")
    assert str(members[1]) in message
    (members[1] / "adapter_model.bin").unlink()
    refuse(members, tmp_path / "average", f"lacks {FILE}")


def test_a_whole_model_is_no_member(base: Path, members: list[Path], tmp_path: Path) -> None:
    assert str(base) in refuse([*members, base], tmp_path / "average", r"holds no adapter_config.json")


def test_what_is_no_adapter_is_refused_after_the_first_fold(members: list[Path], tmp_path: Path) -> None:
    """Such as exp009's model: all folds were trained first, and then a KeyError ended the run."""
    check_adapters("fold0", {"llm": members[0]})
    with pytest.raises(
        ValueError, match=r"ship = average, but linear of fold0 is no adapter: .* ship=folds or ship=full"
    ):
        check_adapters("fold0", {"llm": members[0], "linear": tmp_path})


def test_factors_of_other_ranks_scalings_or_matrices_are_refused(base: Path, tmp_path: Path) -> None:
    settings = AverageSettings("factors")
    changes = {"r": {"r": 2, "lora_alpha": 4}, "alpha": {"lora_alpha": 4}, "targets": {"target_modules": ["q_proj"]}}
    for name, change in changes.items():
        adapters = make_members(base, tmp_path / name, [SOME, {**SOME, **change}])
        refuse(
            adapters, tmp_path / name / "average", "factors needs one rank and one scaling.*set method=exact", settings
        )
    same = make_members(base, tmp_path / "same", [SOME, {**SOME, "use_rslora": True, "lora_alpha": 4}])
    average_adapters(same, tmp_path / "average", settings)  # 8/4 = 4/√4


@pytest.mark.parametrize(
    "settings", [{"method": "svd"}, {"method": "svd", "rank": -1}, {"rank": 4}, {"method": "factors", "rank": 4}]
)
def test_a_rank_that_does_not_go_with_the_method_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"rank = {settings.get('rank', 0)}"):
        AverageSettings(**settings)


def test_a_rank_above_the_sum_of_ranks_is_refused(base: Path, members: list[Path], tmp_path: Path) -> None:
    refuse(members, tmp_path / "average", "rank = 9, but the members' ranks sum up to 8", AverageSettings("svd", 9))
    average_adapters(members, tmp_path / "average", AverageSettings("svd", 8))
    figures = records.read_json(tmp_path / "average" / "weights.json")["average"]
    assert figures["kept_energy"] == pytest.approx(1, abs=1e-12)


def test_a_member_is_never_overwritten(members: list[Path]) -> None:
    before = (members[0] / FILE).read_bytes()
    with pytest.raises(ValueError, match="is a member of the average"):
        average_adapters(members, members[0], EXACT)
    assert (members[0] / FILE).read_bytes() == before


def test_a_failed_average_leaves_the_former_one(base: Path, members: list[Path], tmp_path: Path) -> None:
    average_adapters(members, tmp_path / "average", EXACT)
    before = {path.name: path.read_bytes() for path in (tmp_path / "average").iterdir()}
    change_tensors(members[1], lambda tensors: tensors[max(tensors)].fill_(float("nan")))
    with pytest.raises(ValueError, match="non-finite"):
        average_adapters(members, tmp_path / "average", EXACT)
    assert {path.name: path.read_bytes() for path in (tmp_path / "average").iterdir()} == before
    assert json.loads(before["adapter_config.json"])["r"] == 8
