"""Models of a few thousand random weights with their own tokenizers, made in the session: nothing is downloaded."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
from pico import save_encoder, save_llama
from workspace import Workspace, copy_workspace, make_workspace, succeed

HEADS = {  # class, settings of its config
    "bert-sequence": ("BertForSequenceClassification", {"num_labels": 3}),
    "bert-token": ("BertForTokenClassification", {"num_labels": 4}),
    "llama-sequence": ("LlamaForSequenceClassification", {"num_labels": 3}),
    "llama-without-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": None}),
    "llama-with-other-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": 5}),
}


LONG_FILES = [
    "test_edits",
    "test_rehearsal",
    "test_doctor",
    "test_sessions",
    "test_experiments",
    "test_server",
    "test_pool",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose few tests take minutes come first where workers share them: last, one would work and the others wait.

    Elsewhere the order is the one asked for, such as that of faults.py, the nearest file first.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.stem not in LONG_FILES)
    for item in items:
        if item.get_closest_marker("release"):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    if forks.FOLDER not in os.environ:  # pytest-xdist's workers have it from the process that started them
        forks.open_session()
        config.option.tx = [f"{worker}//python={forks.python()}" for worker in getattr(config.option, "tx", [])]


def pytest_unconfigure() -> None:
    if os.environ.get(forks.OWNER) == str(os.getpid()):
        shutil.rmtree(os.environ[forks.FOLDER], ignore_errors=True)


def set_aside() -> None:
    """What large libraries leave is a million objects; each training looks for garbage among them for half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> None:
    set_aside()


@pytest.fixture(scope="module")
def fast_python() -> Iterator[None]:
    """What starts sys.executable gets a process that has the libraries loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", forks.python())
        yield


@pytest.fixture(scope="session")
def pico_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of two layers; read only."""
    folder = save_llama(tmp_path_factory.mktemp("models") / "pico-llm")
    set_aside()
    return folder


@pytest.fixture(scope="session")
def pico_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of two layers: Transformer, mean Pooling, Normalize; read only."""
    folder = save_encoder(tmp_path_factory.mktemp("models") / "pico-encoder")
    set_aside()
    return folder


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., Path]:
    """make_llm(folder, **config changes) → folder, for tests that need another causal LM."""
    return save_llama


@pytest.fixture(scope="session")
def broken_llm(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pico_llm whose last norm is NaN; read only."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "broken-llm"
    shutil.copytree(pico_llm, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session", params=HEADS)
def pico_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a head of `HEADS`; read only."""
    import torch
    import transformers

    name, changes = HEADS[request.param]
    base = request.getfixturevalue("pico_llm" if name.startswith("Llama") else "pico_encoder")
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    getattr(transformers, name)(transformers.AutoConfig.from_pretrained(base, **changes)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def with_lora() -> Callable[..., Any]:
    """with_lora(base, **config changes) → the base with an adapter that changes every linear matrix: B is not zero.

    Matrices are named without their layer, as PEFT writes all-linear down for models of three layers and more.
    """

    def attach(base: Path, **config: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **config)
        names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return model

    return attach


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """make_once(name, make) → what make(folder) has filled, once for all workers of pytest-xdist; read only."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    once = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def find(name: str, make: Callable[[Path], Any]) -> Path:
        once.mkdir(exist_ok=True)
        with FileLock(once / f"{name}.lock"):
            if not (once / name).exists():
                shutil.rmtree(once / f"{name}-making", ignore_errors=True)
                make(once / f"{name}-making")
                (once / f"{name}-making").rename(once / name)
        return once / name

    return find


@pytest.fixture(scope="session")
def bare(make_once: Callable[..., Path], pico_llm: Path, pico_encoder: Path) -> Workspace:
    """A repository of its own in which nothing was run yet; read only."""
    return Workspace(make_once("bare", lambda folder: make_workspace(folder, pico_llm, pico_encoder)))


@pytest.fixture(scope="session")
def trained(make_once: Callable[..., Path], bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A repository in which exp001_retrieve--smoke and exp002_rerank--smoke are complete."""

    def train(folder: Path) -> None:
        workspace = copy_workspace(bare, folder)
        for experiment in ("exp001_retrieve", "exp002_rerank"):
            succeed(workspace.train(experiment, "--smoke"))

    return copy_workspace(Workspace(make_once("trained", train)), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def light_master(make_once: Callable[..., Path], bare: Workspace) -> Workspace:
    """A repository with a complete run whose session takes seconds: see light.py; read only."""
    from light import make_light

    return Workspace(make_once("light", lambda folder: make_light(copy_workspace(bare, folder))))


@pytest.fixture(scope="session")
def rehearsed(make_once: Callable[..., Path], light_master: Workspace) -> Workspace:
    """The same, bundled and rehearsed with fold 0's replay; said.txt holds what was printed; read only."""
    from light import RUN

    def rehearse(folder: Path) -> None:
        workspace = copy_workspace(light_master, folder)
        succeed(workspace.cli("bundle", RUN))
        (folder / "said.txt").write_text(succeed(workspace.cli("rehearse", RUN, "--replay", "0")))

    return Workspace(make_once("rehearsed", rehearse))


@pytest.fixture(scope="module")
def light(light_master: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A copy of it to be written to. The tests' own root while it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        workspace = copy_workspace(light_master, tmp_path_factory.mktemp("light"))
        patch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
        yield workspace
