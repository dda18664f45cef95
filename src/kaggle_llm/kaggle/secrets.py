"""What must never travel: secrets, by the names of files and by patterns anchored on key names, and pickles.

Hashes in our own records and manifests are long strings of hex too, so a string alone is no secret: the name before it,
or an unmistakable beginning, makes it one. A message names file and line, never the secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FILES = re.compile(
    r"(kaggle\.json|\.env(\..+)?|.+\.env|access_token(\.txt)?|credentials(\.json)?|\.?netrc|\.pypirc|\.git-credentials|"
    r"id_(rsa|dsa|ecdsa|ed25519)(\.pub)?|.+\.(pem|key|p12|pfx|keystore)|\.?hf_token|\.htpasswd|"
    r"(client_secret|service[-_]account).*\.json|settings\.wandb)",
    re.IGNORECASE,
)
FOLDERS = {".git", ".ssh", ".aws", ".kaggle", ".gnupg", ".azure", "wandb"}
VALUE = rb"[\"']?\s*[:=]\s*[\"']?(?![\"'{<$%])[0-9A-Za-z+/_.~-]{8,}(?![\w(.\[])"
# What it looks like: words that every such secret is near, in lower case, and the pattern.
PATTERNS = {
    "a private key": ((b"private key",), rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a Kaggle API key": ((b"kaggle_", b"kgat_"), rb"KAGGLE_(KEY|API_TOKEN)" + VALUE + rb"|\bKGAT_[0-9a-zA-Z]{16,}"),
    "a Kaggle account": (
        (b"username",),
        rb"[\"']username[\"']\s*:\s*[\"'][^\"']+[\"']\s*,\s*[\"']key[\"']\s*:\s*[\"'][0-9a-f]{32}[\"']",
    ),
    "a Hugging Face token": (
        (b"hf_", b"huggingface", b"hugging_face"),
        rb"\bhf_[0-9A-Za-z]{30,}|(HF|HUGGING_?FACE)_?(HUB)?_?TOKEN" + VALUE,
    ),
    "a W&B key": ((b"wandb_api_key",), rb"WANDB_API_KEY" + VALUE),
    "an OpenAI or Anthropic key": ((b"sk-",), rb"\bsk-(ant-|proj-)?[0-9A-Za-z_-]{20,}"),
    "a GitHub token": ((b"ghp_", b"gho_", b"ghs_", b"github_pat_"), rb"\b(gh[pos]_[0-9A-Za-z]{36}|github_pat_\w{22})"),
    "an AWS key": ((b"akia", b"asia", b"aws_secret"), rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key" + VALUE),
    "a Google API key": ((b"aiza",), rb"\bAIza[0-9A-Za-z_-]{35}"),
    "a Slack token": ((b"xox",), rb"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    "a password or key": (
        (b"api", b"secret", b"auth", b"access", b"passw"),
        rb"\b(api[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|password|passwd)"
        rb"[\"']?\s*[:=]\s*[\"'][0-9A-Za-z+/_.~-]{16,}={0,2}[\"']",
    ),
}
CASELESS = {"a Hugging Face token", "a W&B key", "a password or key", "a Kaggle API key"}
WINDOW = 300  # bytes behind a word in which its secret ends; a little before it one may begin
HEAD = 4096  # bytes that tell text from binary, and a pickle from both
PICKLE = re.compile(rb"\x80[\x02-\x05].", re.DOTALL)
ARCHIVED_PICKLE = re.compile(rb"data\.pkl|\.pkl\b")


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
        yield "is a pickle, which runs code when it is read: save tensors as safetensors, other things as JSON"
    elif b"\0" not in head:
        yield from examine_text(path.read_bytes())


def is_pickle(path: Path, head: bytes) -> bool:
    """By content: a bare pickle, or an archive with one, as torch.save makes it."""
    if head.startswith(b"PK\x03\x04"):
        return bool(ARCHIVED_PICKLE.search(head))
    return bool(PICKLE.match(head)) or path.suffix in (".pkl", ".pickle", ".joblib")


def examine_text(text: bytes) -> Iterator[str]:
    """Looks for the words first, which is as fast as reading, and for a pattern only near them."""
    lower = text.lower()
    found: dict[int, str] = {}
    for what, (words, pattern) in PATTERNS.items():
        secret = re.compile(pattern, re.IGNORECASE if what in CASELESS else 0)
        for place in (place for word in words for place in find_all(lower, word)):
            start = max(place - 40, 0)
            if near := secret.search(text[start : place + WINDOW]):
                found.setdefault(start + near.start(), what)
    for place, what in sorted(found.items()):
        line = text.count(b"\n", 0, place) + 1
        yield f"line {line} looks like {what}"


def find_all(text: bytes, word: bytes) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))
