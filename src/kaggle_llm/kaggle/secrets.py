"""What must never travel: secrets, by the names of files and by patterns anchored on key names, and pickles.

Hashes in our own records and manifests are long strings of hex too, so a string alone is no secret: the name before it,
or an unmistakable beginning, makes it one. A message names file and line, never the secret.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

FILES = re.compile(
    r"(kaggle\.json|\.env(\..+)?|.+\.env|access_token(\.txt)?|credentials(\.json)?|\.?netrc|\.pypirc|\.git-credentials|"
    r"id_(rsa|dsa|ecdsa|ed25519)(\.pub)?|.+\.(pem|key|p12|pfx|keystore)|\.?hf_token|\.htpasswd|"
    r"(client_secret|service[-_]account).*\.json|settings\.wandb)",
    re.IGNORECASE,
)
FOLDERS = {".git", ".ssh", ".aws", ".kaggle", ".gnupg", ".azure", ".docker", ".huggingface", ".config", "wandb"}
VALUE = rb"[\"']?\]?\s*[:=]\s*[\"']?(?![\"'{<$%])[0-9A-Za-z+/_.~-]{8,}(?![\w(.\[])"
TEXT = rb"[\"'][^\"'\n]+[\"']"
# What it looks like, by its own beginning: the beginning, and all of it.
BEGINNINGS = [
    ("a private key", b"-----BEGIN ", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("a Kaggle API key", b"KGAT_", rb"\bKGAT_[0-9a-zA-Z]{16,}"),
    ("a Hugging Face token", b"hf_", rb"\bhf_[0-9A-Za-z]{30,}"),
    ("an OpenAI or Anthropic key", b"sk-", rb"\bsk-(ant-|proj-)?[0-9A-Za-z_-]{20,}"),
    *(("a GitHub token", word, rb"\bgh[pos]_[0-9A-Za-z]{36}") for word in (b"ghp_", b"gho_", b"ghs_")),
    ("a GitHub token", b"github_pat_", rb"\bgithub_pat_\w{22}"),
    *(("an AWS key", word, rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b") for word in (b"AKIA", b"ASIA")),
    ("a Google API key", b"AIza", rb"\bAIza[0-9A-Za-z_-]{35}"),
    ("a Slack token", b"xox", rb"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
]
# What it looks like, by the name that it is given.
NAMES = [
    ("a Kaggle API key", rb"KAGGLE_(KEY|API_TOKEN)" + VALUE),
    ("a Kaggle account", rb"[\"']username[\"']\s*:\s*" + TEXT + rb"\s*,\s*[\"']key[\"']\s*:\s*[\"'][0-9a-f]{32}[\"']"),
    ("a Hugging Face token", rb"(HF|HUGGING_?FACE)_?(HUB)?_?TOKEN" + VALUE),
    ("a W&B key", rb"WANDB_API_KEY" + VALUE + rb"|wandb\.login\(\s*key\s*=\s*[\"'][0-9a-f]{40}"),
    ("an AWS key", rb"aws_secret_access_key" + VALUE),
    (
        "a password or key",
        rb"\b(api[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|password|passwd)"
        rb"[\"']?\s*[:=]\s*[\"'][0-9A-Za-z+/_.~-]{16,}={0,2}[\"']",
    ),
]
ENDS = (b"key", b"token", b"password", b"passwd")  # of every such name, in lower case
GIVEN = re.compile(rb"[\"']?\]?\s*[:=]\s*[\"']?[0-9A-Za-z+/_.~-]{8}")  # what stands behind it where a value follows
BEFORE, BEHIND = 150, 300  # bytes around the end of a name in which all of it lies
HEAD = 4096  # bytes that tell text from binary, and a pickle from both
PICKLE = re.compile(rb"\x80[\x02-\x05]")
SAFETENSORS = re.compile(rb".{8}\{\"", re.DOTALL)  # its first 8 bytes are a number, and may be any
PICKLED = (".pkl", ".pickle", ".joblib")


def check_secrets(folder: Path) -> None:
    """Raises ValueError with what a folder holds that must not travel: each file, with the line of a secret."""
    found = [f"{folder.name}/{problem}" for problem in find_secrets(folder)]
    if found:
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"not bundled: {'; '.join(found[:5])}{more}. Move it out of what travels, or read it at run time"
        )


def find_secrets(folder: Path) -> Iterator[str]:
    """ "a/b.yaml line 3 looks like a Kaggle API key" of every file that must not travel."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if FOLDERS & set(name.parts):
            if path.is_file():
                yield f"{name.as_posix()} lies in a folder of secrets"
        elif path.is_file():
            yield from (f"{name.as_posix()} {problem}" for problem in examine_file(path))


def examine_file(path: Path) -> Iterator[str]:
    """What is wrong with one file: its name, a pickle, a secret in its text."""
    if FILES.fullmatch(path.name):
        yield "is a file of secrets by its name"
        return
    with path.open("rb") as file:
        head = file.read(HEAD)
    if is_pickle(path, head):
        yield "is a pickle, which runs code when it is read: keep tensors as safetensors, other things as JSON"
    elif b"\0" not in head:
        yield from examine_text(path.read_bytes())


def is_pickle(path: Path, head: bytes) -> bool:
    """By content: a bare pickle, or an archive with one, as torch.save makes it. A compressed one only by its name.

    A wheel is code anyway, and may bring its tests.
    """
    if path.suffix in PICKLED:
        return True
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return path.suffix != ".whl" and any(name.endswith(PICKLED) for name in archive.namelist())
    return bool(PICKLE.match(head)) and not SAFETENSORS.match(head)


def examine_text(text: bytes) -> Iterator[str]:
    """Looks for words first, which is almost as fast as reading, and for a pattern only where one stands."""
    found: dict[int, str] = {}
    for what, word, pattern in BEGINNINGS:
        secret = re.compile(pattern)
        found |= {place: what for place in find_all(text, word) if secret.match(text, place)}
    lower = text.lower()
    for word in ENDS:
        for place in find_all(lower, word):
            if GIVEN.match(text, place + len(word)):
                found |= dict(find_named(text, place))
    for place, what in sorted(found.items()):
        line = text.count(b"\n", 0, place) + 1
        yield f"line {line} looks like {what}"


def find_named(text: bytes, place: int) -> Iterator[tuple[int, str]]:
    """Where a secret begins whose name ends near `place`, and what it looks like."""
    start = max(place - BEFORE, 0)
    for what, pattern in NAMES:
        if near := re.search(pattern, text[start : place + BEHIND], re.IGNORECASE):
            yield start + near.start(), what
            return


def find_all(text: bytes, word: bytes) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))
