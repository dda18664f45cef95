"""Secrets, pickles and links never travel; hashes, tokenizers and weights do."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import Workspace, succeed

from kaggle_llm.kaggle.secrets import check_secrets, find_secrets

SMOKE = "exp001_retrieve--smoke"
HEX = "0123456789abcdef" * 2
LETTERS = "Ab3dEf6hIj9lMn2pQr5tUv8xYz1bCd4fGh7j"


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return plant


def save_tensors(folder: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(3)}, folder / "model.bin")


def save_zip(folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "index.zip", "w") as archive:
        archive.writestr("first.txt", "x" * 10_000)
        archive.writestr("deep/vectors.pkl", "x")


def link_outside(folder: Path) -> None:
    (folder / "prompt.txt").symlink_to("/etc/hostname")


# What somebody leaves in an experiment's folder, and what the message calls it.
PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "kaggle.json": (
        write("kaggle.json", json.dumps({"username": "me", "key": HEX})),
        "kaggle.json is a file of secrets",
    ),
    "its content elsewhere": (write("notes.txt", f'login {{"username": "me", "key": "{HEX}"}}'), "a Kaggle account"),
    ".env": (write(".env", "A=1\n"), ".env is a file of secrets"),
    "an environment variable": (
        write("run.sh", f"\n\nexport KAGGLE_KEY={HEX}\n"),
        "run.sh line 3 looks like a Kaggle API",
    ),
    "Hugging Face": (write("load.py", f'login("hf_{LETTERS}")\n'), "load.py line 1 looks like a Hugging Face token"),
    "W&B": (write("track.yaml", f"WANDB_API_KEY: {HEX}{HEX[:8]}\n"), "a W&B key"),
    "W&B in code": (write("log.py", f'wandb.login(key="{HEX}{HEX[:8]}")\n'), "a W&B key"),
    "set in code": (
        write("env.py", f'\nos.environ["KAGGLE_KEY"] = "{HEX}"\n'),
        "env.py line 2 looks like a Kaggle API",
    ),
    "a token file": (write(".huggingface/token", "x"), "a folder of secrets"),
    "OpenAI": (write("label.py", f'client = OpenAI(api_key="sk-proj-{LETTERS}")\n'), "an OpenAI or Anthropic key"),
    "GitHub": (write("install.sh", f"git clone https://ghp_{LETTERS}@github.com/a/b\n"), "a GitHub token"),
    "AWS": (write("data.py", 'key = "AKIAIOSFODNN7EXAMPLE"\n'), "an AWS key"),
    "a private key": (write("deploy.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n"), "a private key"),
    "its file": (write("server.pem", "x"), "server.pem is a file of secrets"),
    ".netrc": (write(".netrc", "machine api.wandb.ai login user password x\n"), ".netrc is a file of secrets"),
    "a git folder": (write(".git/config", "[remote]\n"), "a folder of secrets"),
    "a password": (write("db.yaml", 'password: "correct-horse-battery-staple"\n'), "a password or key"),
    "a pickle": (write("features.dat", pickle.dumps({"a": [1, 2]})), "features.dat is a pickle"),
    "a torch file": (save_tensors, "model.bin is a pickle"),
    "an archive with one": (save_zip, "index.zip is a pickle"),
    "joblib's": (write("model.joblib", b"x\x9c\x01"), "model.joblib is a pickle"),
    "a link": (link_outside, "prompt.txt is a link to"),
}


@pytest.mark.parametrize("kind", sorted(PLANTED.keys() - {"a link"}))
def test_a_planted_secret_is_named_and_not_repeated(kind: str, tmp_path: Path) -> None:
    plant, message = PLANTED[kind]
    plant(tmp_path)
    with pytest.raises(ValueError, match="not bundled") as refusal:
        check_secrets(tmp_path)
    assert message in str(refusal.value)
    assert HEX not in str(refusal.value) and LETTERS not in str(refusal.value), "the message does not repeat the secret"


@pytest.mark.parametrize("kind", ["Hugging Face", ".env", "a git folder", "a pickle", "a link"])
def test_a_bundle_with_a_planted_secret_is_refused(
    trained: Workspace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file of text, in one or in a folder whose name begins with a dot, in one of bytes, behind a link."""
    from kaggle_llm.kaggle.bundle import bundle_run

    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(trained.root))
    folder, (plant, message) = trained.root / "exp" / "exp001_retrieve", PLANTED[kind]
    shutil.rmtree(trained.output / "bundles" / SMOKE, ignore_errors=True)  # of another test
    before = set(folder.rglob("*"))
    plant(folder)
    try:
        with pytest.raises(ValueError, match=r"not bundled|is a link") as refusal:
            bundle_run(SMOKE)
    finally:
        for path in sorted(set(folder.rglob("*")) - before, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert message in str(refusal.value) and "exp001_retrieve" in str(refusal.value)
    assert not (trained.output / "bundles" / SMOKE).exists()


def test_a_clean_bundle_passes(trained: Workspace) -> None:
    succeed(trained.cli("bundle", SMOKE))
    assert (trained.output / "bundles" / SMOKE / "MANIFEST.json").is_file()


def test_what_only_looks_like_a_secret_passes(tmp_path: Path) -> None:
    """Records full of hashes, a config that names a token's budget, code that reads a key at run time."""
    write("record.json", json.dumps({"key": HEX * 2, "inputs": {"token": HEX * 2}, "files": {"a.json": HEX * 2}}))(
        tmp_path
    )
    write("tokenizer_config.json", json.dumps({"pad_token": "<pad>", "tokenizer_class": "X", "token": None}))(tmp_path)
    write("config.yaml", "max_tokens: 4096\nunk_token: '<unk>'\nsecret_name: kaggle\n")(tmp_path)
    write("code.py", 'key = os.environ["WANDB_API_KEY"]\napi_key = read_secret("x")\nHF_TOKEN = os.getenv("A")\n')(
        tmp_path
    )
    write("notes.txt", "risk-free-of-all-the-hyphens, sk-, PK\nkey: value\ntoken = sample\n")(tmp_path)
    write("zip.txt", b"PK is how an archive begins")(tmp_path)
    write("model.safetensors", (0x0280).to_bytes(8, "little") + b'{"__metadata__":{}}')(tmp_path)
    write("prompt.txt", "Password: what was wrong? The username and key are public.\n")(tmp_path)
    assert list(find_secrets(tmp_path)) == []


def test_a_large_tokenizer_takes_as_long_as_its_size_and_weights_nothing(tmp_path: Path) -> None:
    def look(words: int, weights: int) -> float:
        rng, folder = random.Random(0), tmp_path / f"{words}-{weights}"
        write("tokenizer.json", json.dumps({f"{rng.getrandbits(60):x}": n for n in range(words)}))(folder)
        write("model.safetensors", b"\x08\0\0\0\0\0\0\0{}" + os.urandom(1 << 20) * weights)(folder)
        start = time.process_time()
        check_secrets(folder)
        return time.process_time() - start

    small, large, heavy = look(20_000, 0), look(200_000, 0), look(20_000, 64)
    assert large < 30 * small, "ten times the text"
    assert heavy < 3 * small, "64 MB of weights are not read"
