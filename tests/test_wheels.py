"""`kaggle-llm wheels` on tiny wheels made here: uv and pip are real, their index is a folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import forks
import pytest
from tiny_wheels import write_wheel

from kaggle_llm.base import records
from kaggle_llm.kaggle import wheelhouse
from kaggle_llm.kaggle.bundle import add_wheels
from kaggle_llm.kaggle.wheelhouse import make_wheelhouse, print_wheelhouse
from kaggle_llm.runtime.pins import Pin, Runtime, load_runtime
from kaggle_llm.runtime.tags import choose_wheel, list_platforms
from kaggle_llm.runtime.wheels import download_wheels, read_lock, resolve_pins, store_name

IMAGE = load_runtime("t4x2-transformers").image  # Python 3.13, glibc 2.35
PURE, ABI3 = "py3-none-any", "cp38-abi3-manylinux_2_17_x86_64"
BINARY = "cp313-cp313-manylinux_2_28_x86_64"


def open_index(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that uv and pip know, and a repository of its own."""
    index, root = folder / "index", folder / "root"
    index.mkdir()
    for name in ("exp", "submission"):
        (root / name).mkdir(parents=True)
    (folder / "uv.toml").write_text(f"no-index = true\nfind-links = [{str(index)!r}]\nno-cache = true\n")
    settings = {"UV_CONFIG_FILE": str(folder / "uv.toml")}
    settings |= {"PIP_FIND_LINKS": str(index), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    for name, value in {**settings, "KAGGLE_LLM_ROOT": str(root)}.items():
        patch.setenv(name, value)
    return index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_index(tmp_path, monkeypatch)


def make_runtime(monkeypatch: pytest.MonkeyPatch, **pins: str) -> Runtime:
    """t4x2-transformers that brings other packages."""
    packages = {name: Pin(version, "of the test") for name, version in pins.items()}
    runtime = replace(load_runtime("t4x2-transformers"), name="tiny", packages=packages)
    runtime = replace(runtime, image=replace(runtime.image, transformers="5.16+image"))  # no index has it either
    runtime = replace(runtime, transformers=replace(runtime.transformers, version="5.16+image"))
    runtime.image.companions = {"torchvision": "0.26.0+cu128"}
    monkeypatch.setattr(wheelhouse, "load_runtime", lambda name: runtime)
    return runtime


def fill_index(index: Path) -> Path:
    """plain needs torch (the image's), binary and, on Python 3.13 only, stable; newer versions of two lie there too."""
    needs = ["torch>=2.11", "binary", "stable; python_version >= '3.13'", "old; python_version < '3.13'"]
    write_wheel(index, "plain", "1.0", PURE, needs)
    write_wheel(index, "plain", "2.0", PURE)
    write_wheel(index, "binary", "1.0", BINARY)
    write_wheel(index, "binary", "1.0", "cp313-cp313-manylinux_2_17_x86_64")
    write_wheel(index, "binary", "1.0", "cp312-cp312-manylinux_2_28_x86_64")
    write_wheel(index, "binary", "1.1", "cp313-cp313-manylinux_2_39_x86_64")  # a newer glibc than the image's
    write_wheel(index, "stable", "3.0", ABI3)
    write_wheel(index, "local", "1.0+cu128", PURE)
    write_wheel(index, "torch", "2.13.0", PURE)
    return index


@pytest.fixture
def filled(index: Path) -> Path:
    return fill_index(index)


@dataclass(frozen=True)
class Collected:
    index: Path
    folder: Path


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    """The wheels of plain and local, after a download that was cut and one of another lock; the index lasts as long."""
    with pytest.MonkeyPatch.context() as patch:
        index = fill_index(open_index(tmp_path_factory.mktemp("wheels"), patch))
        runtime = make_runtime(patch, plain="1.0", local="1.0+cu128")
        downloads = index.parent / "root" / "output" / "wheels" / ".downloads"
        downloads.mkdir(parents=True)
        cut = downloads / f"plain-1.0-{PURE}.whl"
        cut.write_bytes((index / cut.name).read_bytes()[:100])
        (downloads / f"stable-2.0-{ABI3}.whl").write_bytes(b"of another lock")
        yield Collected(index, make_wheelhouse(runtime.name))


# the whole command ----------------------------------------------------------------------------------------------


def test_the_wheels_are_those_of_the_images_python_and_nothing_that_it_has_itself(
    collected: Collected, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole files, also of what was cut."""
    folder, filled = collected.folder, collected.index
    expected = [
        f"binary-1.0-{BINARY}.whl",
        "local-1.0_plus_cu128-py3-none-any.whl",
        f"plain-1.0-{PURE}.whl",
        f"stable-3.0-{ABI3}.whl",
    ]
    assert sorted(path.name for path in (folder / "wheels").glob("*.whl")) == expected
    lines = [line.split() for line in (folder / "wheels" / "SHA256SUMS").read_text().splitlines()]
    assert [stored for _, stored, _ in lines] == expected
    assert [name for _, _, name in lines][1] == "local-1.0+cu128-py3-none-any.whl"
    for digest, stored, name in lines:
        assert digest == hashlib.sha256((filled / name).read_bytes()).hexdigest()
        assert (folder / "wheels" / stored).read_bytes() == (filled / name).read_bytes()
    lock = (folder / "lock.txt").read_text()
    names = ("binary==1.0", "local==1.0+cu128", "plain==1.0", "stable==3.0")
    assert lock == "".join(f"{n} --hash=sha256:{d}\n" for n, (d, *_) in zip(names, lines, strict=True))
    manifest = records.read_json(folder / "MANIFEST.json")
    assert (manifest["slug"], manifest["kind"]) == ("tiny-wheels", "wheels")
    assert manifest["kept"]["torch"] == "2.11.0+cu128" and str(filled) not in (folder / "MANIFEST.json").read_text()
    print_wheelhouse(folder)
    said = capfd.readouterr().out
    assert "4 wheels, 0.0 MB" in said and "left to the image: torch 2.11.0+cu128" in said


def test_the_same_pins_are_collected_once(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = collected.folder.stat().st_ino
    monkeypatch.setattr(sys, "executable", "/nowhere")  # neither uv nor pip can be asked
    assert make_wheelhouse("tiny").stat().st_ino == made and "already" in capfd.readouterr().out
    make_runtime(monkeypatch, plain="1.0")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        make_wheelhouse("tiny")


def test_a_bundle_takes_the_wheels_along(collected: Collected, tmp_path: Path) -> None:
    assert add_wheels(tmp_path / "bundle", "tiny") == "tiny-wheels"
    stored = tmp_path / "bundle" / "tiny-wheels" / "wheels" / "local-1.0_plus_cu128-py3-none-any.whl"
    assert stored.stat().st_ino == (collected.folder / "wheels" / stored.name).stat().st_ino


@pytest.mark.slow
def test_a_second_collection_gives_the_same_bytes_and_downloads_nothing(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_runtime(monkeypatch, plain="1.0")
    folder = make_wheelhouse("tiny")
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    folder.rename(folder.parent / "before")
    capfd.readouterr()
    make_wheelhouse("tiny")
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    assert "Saved" not in capfd.readouterr().out, "all of it was there"


@pytest.mark.slow
def test_other_pins_are_collected_anew_and_a_failure_leaves_what_was_there(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runtime(monkeypatch, plain="1.0")
    folder = make_wheelhouse("tiny")
    lock = (folder / "lock.txt").read_text()
    make_runtime(monkeypatch, plain="9.0")
    with pytest.raises(ValueError, match=r"(?s)pins of runtime tiny do not go together.*plain==9\.0"):
        make_wheelhouse("tiny")
    assert (folder / "lock.txt").read_text() == lock
    make_runtime(monkeypatch, plain="2.0")
    make_wheelhouse("tiny")
    assert (folder / "lock.txt").read_text().startswith("plain==2.0 ")


def test_what_does_not_go_with_the_images_own_torch_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13.0 lies in the index: it must not come along beside the image's."""
    write_wheel(filled, "demanding", "1.0", PURE, ["torch>=2.13"])
    make_runtime(monkeypatch, demanding="1.0")
    with pytest.raises(ValueError, match=r"(?s)do not go together.*torch"):
        make_wheelhouse("tiny")


def test_a_package_without_a_wheel_for_the_image_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index, "foreign", "1.0", "cp312-cp312-manylinux_2_28_x86_64")
    make_runtime(monkeypatch, foreign="1.0")
    with pytest.raises(ValueError, match=r"(?s)foreign==1\.0.*cp312"):
        make_wheelhouse("tiny")


def test_a_file_that_is_not_the_locked_one_ends_the_download(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make_runtime(monkeypatch, stable="3.0")
    resolved = resolve_pins(runtime)
    write_wheel(filled, "stable", "3.0", ABI3, ["changed-since"])
    with pytest.raises(RuntimeError, match="exit code 1: see its output above"):
        download_wheels(resolved, runtime.image, filled.parent / "downloads")


# tags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        (PURE, True),
        ("py2.py3-none-any", True),
        (ABI3, True),
        (BINARY, True),
        ("cp313-cp313-manylinux2014_x86_64.manylinux_2_17_x86_64", True),
        ("cp313-cp313-manylinux1_x86_64", True),
        ("py3-none-manylinux_2_35_x86_64", True),
        ("cp314-abi3-manylinux_2_28_x86_64", False),
        ("cp312-cp312-manylinux_2_28_x86_64", False),
        ("cp313-cp313t-manylinux_2_28_x86_64", False),
        ("cp313-cp313-manylinux_2_36_x86_64", False),
        ("cp313-cp313-musllinux_1_2_x86_64", False),
        ("cp313-cp313-manylinux_2_28_aarch64", False),
        ("py2-none-any", False),
    ],
)
def test_a_wheel_fits_by_its_python_its_abi_and_its_glibc(tag: str, fits: bool) -> None:
    wheel = Path(f"thing-1.0-{tag}.whl")
    if fits:
        assert choose_wheel([wheel], IMAGE) == wheel
        return
    with pytest.raises(ValueError, match=rf"wheel thing-1\.0-{tag}\.whl .* takes cp313, abi3 .* up to glibc 2\.35"):
        choose_wheel([wheel], IMAGE)


def test_the_hosts_own_tags_are_those_that_packaging_finds() -> None:
    """The same computation for this Python and glibc, against packaging's own look at the machine."""
    from packaging import tags

    glibc = ".".join(map(str, tags._manylinux._get_glibc_version()))  # type: ignore[attr-defined]
    host = replace(IMAGE, python=".".join(map(str, sys.version_info[:2])), glibc=glibc)
    own = {str(tag) for tag in tags.sys_tags()}
    assert {f"cp311-abi3-{platform}" for platform in list_platforms(glibc)} <= own
    for tag in sorted(own):
        wheel = Path(f"thing-1.0-{tag}.whl")
        assert choose_wheel([wheel], host) == wheel
    with pytest.raises(ValueError, match="does not take"):
        choose_wheel([Path("thing-1.0-cp399-cp399-linux_x86_64.whl")], host)


def test_the_best_of_several_wheels_is_taken() -> None:
    names = [PURE, ABI3, "cp313-cp313-manylinux_2_17_x86_64", BINARY, "cp312-cp312-manylinux_2_28_x86_64"]
    assert choose_wheel([Path(f"a-1-{tag}.whl") for tag in names], IMAGE).name == f"a-1-{BINARY}.whl"


# the lock -------------------------------------------------------------------------------------------------------


def test_the_lock_is_read_whole_or_not_at_all() -> None:
    one = f"a-b.c==1.0+cu128 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n"
    (found,) = read_lock(one).values()
    assert (found.name, found.version, len(found.hashes)) == ("a-b.c", "1.0+cu128", 2)
    for rest in (
        "b==1.0\n",
        f"b @ https://host/b.whl \\\n    --hash=sha256:{'0' * 64}\n",
        "--index-url https://host\n",
    ):
        with pytest.raises(ValueError, match="no pin with hashes"):
            read_lock(one + rest)


def test_a_linux_takes_wheels_of_its_glibc_and_of_older_ones_under_both_names() -> None:
    found = [name.removesuffix("_x86_64") for name in list_platforms("2.17")]
    assert found[:3] == ["manylinux_2_17", "manylinux2014", "manylinux_2_16"]
    assert found[found.index("manylinux2010") - 1] == "manylinux_2_12"
    assert found[-3:] == ["manylinux_2_5", "manylinux1", "linux"] and len(found) == 13 + 3 + 1


def test_stored_names_have_no_odd_characters() -> None:
    assert store_name("torch-2.11.0+cu128-cp313-cp313-linux_x86_64.whl") == (
        "torch-2.11.0_plus_cu128-cp313-cp313-linux_x86_64.whl"
    )


def test_an_unknown_runtime_is_an_error_of_the_command(index: Path) -> None:
    command = [forks.python(), "-m", "kaggle_llm.cli", "wheels", "t4x2-vllm32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "did you mean 't4x2-vllm032'?" in done.stderr
