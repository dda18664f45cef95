"""Merged tensors equal literal formulas, a soup of one model is that model, what cannot be merged leaves nothing."""

import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.weights import arithmetic
from kaggle_llm.weights.checkpoint import INDEX, Checkpoint
from kaggle_llm.weights.soup import SoupSettings, merge_checkpoints

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
WEIGHTS = [0.2, 0.5, 0.6]
METHODS = ("linear", "slerp", "ties", "dare")


def read(folder: Path) -> Tensors:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name).clone() for name in sorted(checkpoint.tensors)}


def equal(first: Tensors, second: Tensors) -> bool:
    import torch

    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def save(base: Path, folder: Path, seed: int, dtype: str = "float32", shard: str = "60KB") -> Path:
    """`base` with noise on every weight, in shards of at most so many bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from kaggle_llm.engines.tokenizer import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    load_tokenizer(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def members(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models trained from pico_llm, so to say, in several shards each; read only."""
    root = tmp_path_factory.mktemp("soup")
    return [save(pico_llm, root / f"member{seed}", seed) for seed in (1, 2, 3)]


@pytest.fixture
def copy(members: list[Path], tmp_path: Path) -> Path:
    """The second member, to be broken."""
    return Path(shutil.copytree(members[1], tmp_path / "broken"))


def soup(members: Sequence[Path], folder: Path, base: Path | None = None, **settings: Any) -> Tensors:
    merge_checkpoints(members, folder, SoupSettings(**settings), base)
    return read(folder)


# the maths, on tensors --------------------------------------------------------------------------------------


def slerp(a: "torch.Tensor", b: "torch.Tensor", t: float) -> "torch.Tensor":
    return arithmetic.combine([a, b], arithmetic.find_slerp_weights(a, b, t))


def ties(
    base: "torch.Tensor", tensors: "Sequence[torch.Tensor]", weights: list[float], density: float
) -> "torch.Tensor":
    trimmed = [arithmetic.find_cut(base, tensor, density).trim(base, tensor) for tensor in tensors]
    return arithmetic.elect(base, trimmed, weights)


@pytest.fixture(scope="module")
def tensors() -> "list[torch.Tensor]":
    """Base and three members [5, 7], with ties among the members' changes: multiples of 1/4."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-8, 9, (5, 7), generator=generator) / 4 for _ in range(4)]


def test_ties_equals_a_loop_over_elements(tensors: "list[torch.Tensor]") -> None:
    base, *changed = tensors
    kept: list[dict[int, float]] = []
    for tensor in changed:
        delta = (tensor - base).flatten().tolist()
        largest = sorted(range(35), key=lambda i: (-abs(delta[i]), i))[:10]  # int(0.3 · 35)
        kept.append({i: delta[i] for i in largest})
    expected = base.flatten().tolist()
    for i in range(35):
        votes = [(weight, weight * trimmed.get(i, 0.0)) for weight, trimmed in zip(WEIGHTS, kept, strict=True)]
        positive = sum(vote for _, vote in votes) >= 0
        agreeing = [(weight, vote) for weight, vote in votes if (vote > 0 if positive else vote < 0)]
        if agreeing:
            expected[i] += sum(vote for _, vote in agreeing) / sum(weight for weight, _ in agreeing)
    found = ties(base, changed, WEIGHTS, 0.3)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert sum(len(trimmed) for trimmed in kept) == 30


def test_slerp_equals_the_formula_and_its_ends(tensors: "list[torch.Tensor]") -> None:
    import torch

    a, b = tensors[:2]
    x, y = a.double().flatten(), b.double().flatten()
    angle = torch.arccos(x @ y / x.norm() / y.norm())
    expected = (torch.sin(0.7 * angle) * a.double() + torch.sin(0.3 * angle) * b.double()) / torch.sin(angle)
    torch.testing.assert_close(slerp(a, b, 0.3).double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("factor", [1.5, -1.0, 0.0])
def test_slerp_of_parallel_opposite_and_empty_vectors_is_the_straight_line(
    tensors: "list[torch.Tensor]", factor: float
) -> None:
    import torch

    a, b = tensors[0], tensors[0] * factor
    expected = (1 - 0.3) * a + 0.3 * b if factor else None
    found = slerp(a, b, 0.3)
    if expected is None:  # no direction: the angle is a right one, as in mergekit
        expected = a * math.sin(0.7 * math.pi / 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_dare_has_the_mean_of_what_it_drops_from_and_drops_that_share(tensors: "list[torch.Tensor]") -> None:
    import torch

    base, *changed = tensors
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([arithmetic.dare(base, changed, WEIGHTS, 0.25, generator) for _ in range(4000)])
    expected = base + sum(weight * (tensor - base) for weight, tensor in zip(WEIGHTS, changed, strict=True))
    spread = found.std(dim=0) / math.sqrt(4000)
    assert bool(((found.mean(dim=0) - expected).abs() <= 4.5 * spread + 1e-6).all())
    one = torch.stack([arithmetic.dare(base * 0, [base * 0 + 1], [1.0], 0.25, generator) for _ in range(400)])
    assert set(one.unique().tolist()) == {0.0, 4.0}
    assert one.mean().item() == pytest.approx(1.0, abs=0.06)


def test_of_equals_at_the_cut_the_first_are_kept_whatever_the_blocks() -> None:
    import torch

    base, changed = torch.zeros(3, 4), torch.ones(3, 4)
    cut = arithmetic.find_cut(base, changed, 0.5)
    kept = torch.cat([cut.trim(base[rows : rows + 1], changed[rows : rows + 1]) for rows in range(3)])
    assert kept.tolist() == [[1.0] * 4, [1.0, 1.0, 0.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_everything_is_kept_with_density_1(tensors: "list[torch.Tensor]", method: str) -> None:
    import torch

    base, *changed = tensors
    if method == "ties":
        found = ties(base, [changed[0]] * 2, [0.5, 0.5], 1.0)
    else:
        found = arithmetic.dare(base, [changed[0]] * 2, [0.5, 0.5], 1.0, torch.Generator())
    torch.testing.assert_close(found, changed[0], atol=1e-6, rtol=0)


# folders ----------------------------------------------------------------------------------------------------


def test_linear_is_the_weighted_mean(members: list[Path], tmp_path: Path) -> None:
    import torch

    found = soup(members, tmp_path / "soup", weights=WEIGHTS)
    parts = [read(member) for member in members]
    for name, tensor in found.items():
        mean = sum(weight * part[name].double() for weight, part in zip(WEIGHTS, parts, strict=True)) / sum(WEIGHTS)
        torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=0)


def test_weights_are_alike_when_none_are_given(members: list[Path], tmp_path: Path) -> None:
    import torch

    found = soup(members, tmp_path / "soup")
    parts = [read(member) for member in members]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, torch.stack([part[name] for part in parts]).mean(dim=0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_soup_of_a_model_with_itself_is_itself(pico_llm: Path, tmp_path: Path, method: str, dtype: str) -> None:
    import torch

    member = save(pico_llm, tmp_path / "member", 1, dtype)
    weights = [0.3, 0.4] if method == "linear" else []
    base = pico_llm if method in ("ties", "dare") else None
    found = soup([member, member], tmp_path / "soup", base, method=method, weights=weights, density=1.0, t=0.3)
    if method == "linear":
        assert equal(found, read(member))
    for name, tensor in read(member).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=2**-8 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_files_follow_the_maths_with_several_blocks(
    members: list[Path], pico_llm: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 2000 elements give what whole tensors give."""
    import torch

    monkeypatch.setattr("kaggle_llm.weights.shard_writer.BLOCK_ELEMENTS", 2000)
    monkeypatch.setattr("kaggle_llm.weights.arithmetic.BLOCK_ELEMENTS", 1000)
    used = members[:2] if method == "slerp" else members
    base = pico_llm if method in ("ties", "dare") else None
    found = soup(used, tmp_path / "soup", base, method=method, t=0.3, density=0.3)
    parts, source = [read(member) for member in used], read(pico_llm)
    for name, tensor in found.items():
        whole = [part[name] for part in parts]
        if method == "dare":  # every element is the base and any of the three changes, tripled by density and thirded
            choices = [torch.where(torch.tensor(bits), 1, 0) for bits in _bits(3)]
            shape = [3, *[1] * tensor.dim()]
            change = torch.stack([part - source[name] for part in whole]) / 3 / 0.3
            options = torch.stack([source[name] + (change * bits.view(shape)).sum(dim=0) for bits in choices])
            assert bool(((options - tensor).abs().min(dim=0).values < 1e-5).all())
            continue
        expected = {
            "linear": lambda whole=whole: arithmetic.linear(whole, [1, 1, 1]),
            "slerp": lambda whole=whole: slerp(whole[0], whole[1], 0.3),
            "ties": lambda whole=whole, name=name: ties(source[name], whole, [1, 1, 1], 0.3),
        }[method]()
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)


def _bits(count: int) -> Iterator[list[bool]]:
    for number in range(2**count):
        yield [bool(number >> i & 1) for i in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_one_shard_and_many_give_the_same_tensors(
    members: list[Path], pico_llm: Path, tmp_path: Path, method: str
) -> None:
    from transformers import AutoModelForCausalLM

    whole = []
    for member in members[:2]:
        folder = Path(shutil.copytree(member, tmp_path / member.name, ignore=shutil.ignore_patterns("model*")))
        AutoModelForCausalLM.from_pretrained(member).save_pretrained(folder)
        assert len(Checkpoint(folder).shards) == 1 < len(Checkpoint(member).shards)
        whole.append(folder)
    base = pico_llm if method in ("ties", "dare") else None
    many = soup(members[:2], tmp_path / "many", base, method=method)
    mixed = soup([members[0], whole[1]], tmp_path / "mixed", base, method=method)
    assert list(Checkpoint(tmp_path / "many").shards) == list(Checkpoint(members[0]).shards)
    assert equal(many, mixed)
    assert equal(many, soup(whole, tmp_path / "one", base, method=method))


def test_dare_depends_on_its_seed_and_not_on_the_order(members: list[Path], pico_llm: Path, tmp_path: Path) -> None:
    first, again, turned, other = (
        soup(order, tmp_path / f"soup{i}", pico_llm, method="dare", weights=weights, seed=seed)
        for i, (order, weights, seed) in enumerate(
            [(members, WEIGHTS, 0), (members, WEIGHTS, 0), (members[::-1], WEIGHTS[::-1], 0), (members, WEIGHTS, 1)]
        )
    )
    assert equal(first, again)
    assert equal(first, turned)
    assert not any(equal({name: first[name]}, {name: other[name]}) for name in first)


def test_the_merged_folder_opens_with_its_texts_and_its_parents(
    members: list[Path], pico_llm: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from kaggle_llm.engines.tokenizer import load_tokenizer

    folder = tmp_path / "soup"
    soup(members, folder, pico_llm, method="ties", density=0.4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.arange(6, 38)[None]).logits
    assert torch.isfinite(logits).all()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in Checkpoint(folder).tensors
    assert {path.name for path in members[0].iterdir()} | {"weights.json"} == {path.name for path in folder.iterdir()}
    assert load_tokenizer(folder).chat_template == load_tokenizer(pico_llm).chat_template
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    about = json.loads((folder / "weights.json").read_text())
    parents = {f"member{i}": member.as_posix() for i, member in enumerate(members)}
    assert about["stage"] == "merged"
    assert about["parents"] == {**parents, "base": pico_llm.as_posix()}
    assert about["soup"]["density"] == 0.4


def test_the_dtype_is_the_members_or_the_one_that_is_asked_for(pico_llm: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    half = [save(pico_llm, tmp_path / f"half{seed}", seed, "bfloat16") for seed in (1, 2)]
    full = save(pico_llm, tmp_path / "full", 3)
    kept = soup(half, tmp_path / "kept")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"bfloat16 in .*half1 and float32 in .*full: .*--dtype"):
        soup([half[0], full], tmp_path / "mixed")
    mixed = soup([half[0], full], tmp_path / "mixed", dtype="float16")
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mixed", dtype="auto").dtype == torch.float16
    parts = [read(half[0]), read(full)]
    for name, tensor in mixed.items():
        mean = (parts[0][name].double() + parts[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=2**-11)


# what cannot be merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "based", "settings", "message"),
    [
        (1, False, {}, "1 members .* two checkpoints or more"),
        (3, False, {"method": "slerp"}, "slerp takes two members and --t, no weights: got 3 members"),
        (2, False, {"method": "slerp", "weights": [1.0, 1.0]}, "no weights"),
        (2, False, {"method": "ties"}, "method = ties, base = None: .* need the base model"),
        (2, False, {"method": "dare"}, "method = dare, base = None: .* need the base model"),
        (2, True, {}, "method = linear, base = .*pico-llm: .* others none"),
        (2, False, {"weights": [1.0]}, "1 for 2 members"),
        (2, False, {"weights": [1.0, -1.0]}, r"\[1.0, -1.0\]: give numbers whose sum is not 0"),
        (2, False, {"weights": [1.0, math.nan]}, "give numbers whose sum is not 0"),
        (2, True, {"method": "ties", "density": 0.0}, "density = 0.0"),
        (2, True, {"method": "dare", "density": 1.1}, "density = 1.1"),
        (2, False, {"method": "slerp", "t": 1.5}, "t = 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    members: list[Path],
    pico_llm: Path,
    tmp_path: Path,
    count: int,
    based: bool,
    settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        soup(members[:count], tmp_path / "soup", pico_llm if based else None, **settings)
    assert list(tmp_path.iterdir()) == []


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: "Callable[[Tensors], object]") -> None:
    """In the shard that has the last norm."""
    from safetensors.torch import load_file, save_file

    file = Checkpoint(folder).tensors["model.norm.weight"].file
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])


def scramble(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])


def pickle(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def other_merges(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def other_token(folder: Path) -> None:
    from kaggle_llm.engines.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def drop_norm(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def set_norm(value: float) -> "Callable[[Path], None]":
    return lambda folder: change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(value))


BROKEN: "dict[str, tuple[Callable[[Path], object], str]]" = {
    "truncated": (truncate, "truncated"),
    "corrupt": (scramble, "truncated or no safetensors"),
    "shard missing": (lambda folder: sorted(folder.glob("*.safetensors"))[2].unlink(), "lacks 1 of .* shards"),
    "pickle": (pickle, r"pytorch_model\.bin, a pickle"),
    "two models": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"has model\.safetensors and model\.safetensors\.index\.json",
    ),
    "adapter": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "tensor missing": (drop_norm, r"broken has no model\.norm\.weight"),
    "shape": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:63].clone()})
        ),
        r"model\.norm\.weight is \[63\] in .*broken.* and \[64\]",
    ),
    "nan": (set_norm(math.nan), r"broken: model\.norm\.weight has 64 non-finite"),
    "inf": (set_norm(math.inf), r"broken: model\.norm\.weight has 64 non-finite"),
    "layers": (lambda folder: change_json(folder / "config.json", num_hidden_layers=3), "num_hidden_layers = 3"),
    "rope": (
        lambda folder: change_json(
            folder / "config.json", rope_parameters={"rope_theta": 777.0, "rope_type": "default"}
        ),
        r"rope_parameters\.rope_theta = 777.0",
    ),
    "vocabulary size": (lambda folder: change_json(folder / "config.json", vocab_size=7), "vocab_size = 7"),
    "quantised": (
        lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "broken is quantised",
    ),
    "token": (other_token, "another vocabulary .*'<new>'"),
    "merges": (other_merges, "tokenises text differently"),
    "template": (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), "another chat template"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_or_foreign_member_is_named_and_nothing_is_left(
    members: list[Path], copy: Path, tmp_path: Path, fault: str
) -> None:
    damage, message = BROKEN[fault]
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        soup([members[0], copy], tmp_path / "soup")
    assert copy.name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_the_base_needs_the_members_vocabulary_but_not_their_chat_template(
    members: list[Path], pico_llm: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(pico_llm, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    merge_checkpoints(members, tmp_path / "soup", SoupSettings("ties"), base)
    other_token(base)
    with pytest.raises(ValueError, match="base has another vocabulary"):
        merge_checkpoints(members, tmp_path / "other", SoupSettings("ties"), base)


def test_what_is_no_float_is_copied_where_members_agree_and_refused_where_not(
    members: list[Path], copy: Path, tmp_path: Path
) -> None:
    import torch

    other = Path(shutil.copytree(members[0], tmp_path / "other"))
    for folder in (copy, other):
        change_tensors(folder, lambda tensors: tensors.update({"steps": torch.tensor([3, 4])}))
    assert soup([copy, other], tmp_path / "soup")["steps"].tolist() == [3, 4]
    change_tensors(other, lambda tensors: tensors.update({"steps": torch.tensor([3, 5])}))
    with pytest.raises(ValueError, match=r"steps is int64, which cannot be mixed, and differs in .*broken and .*other"):
        soup([copy, other], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_values_too_large_for_float16_are_refused(members: list[Path], copy: Path, tmp_path: Path) -> None:
    set_norm(200_000.0)(copy)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has 64 non-finite values in torch\.float16"):
        soup([members[0], copy], tmp_path / "soup", dtype="float16")
    assert not (tmp_path / "soup").exists()


def test_a_disk_that_is_full_in_the_middle_leaves_what_was_there(members: list[Path], tmp_path: Path) -> None:
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    folder = tmp_path / "soup"
    before = soup(members, folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*\.safetensors"):
            soup(members, folder, weights=WEIGHTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["soup"]
    assert equal(read(folder), before)


def test_a_merged_model_cannot_replace_its_own_member(members: list[Path], copy: Path) -> None:
    before = read(copy)
    with pytest.raises(ValueError, match="one of the merged models"):
        soup([members[0], copy], copy)
    assert equal(read(copy), before)
