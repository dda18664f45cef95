"""Find files that must never be uploaded: secrets, by file name and by patterns around key names, and pickles.

Hashes in our own records and manifests are long strings of hex too, so a string alone is no secret: the name before it,
or a known prefix, makes it one. A message names file and line, never the secret.
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
# Secrets with a known prefix: description, prefix, pattern.
WITH_PREFIX = [
    ("a private key", b"-----BEGIN ", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("a Kaggle API key", b"KGAT_", rb"\bKGAT_[0-9a-zA-Z]{16,}"),
    ("a Hugging Face token", b"hf_", rb"\bhf_[0-9A-Za-z]{30,}"),
    ("an OpenAI or Anthropic key", b"sk-", rb"\bsk-(ant-|proj-)?[0-9A-Za-z_-]{20,}"),
    *(("a GitHub token", prefix, rb"\bgh[pos]_[0-9A-Za-z]{36}") for prefix in (b"ghp_", b"gho_", b"ghs_")),
    ("a GitHub token", b"github_pat_", rb"\bgithub_pat_\w{22}"),
    *(("an AWS key", prefix, rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b") for prefix in (b"AKIA", b"ASIA")),
    ("a Google API key", b"AIza", rb"\bAIza[0-9A-Za-z_-]{35}"),
    ("a Slack token", b"xox", rb"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
]
# Secrets by the name before them: description, pattern.
WITH_NAME = [
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
NAME_ENDINGS = (b"key", b"token", b"password", b"passwd")  # of every name in WITH_NAME, in lower case
VALUE_START = re.compile(rb"[\"']?\]?\s*[:=]\s*[\"']?[0-9A-Za-z+/_.~-]{8}")  # after a name that has a value
BEFORE, AFTER = 150, 300  # bytes around the end of a name that are searched
HEAD_BYTES = 4096  # enough to tell text, binary and pickle apart
PICKLE = re.compile(rb"\x80[\x02-\x05]")
SAFETENSORS = re.compile(rb".{8}\{\"", re.DOTALL)  # the first 8 bytes are a number: any bytes
PICKLED = (".pkl", ".pickle", ".joblib")


def check_secrets(folder: Path) -> None:
    """Raises ValueError with every file of a folder that must not be uploaded, and the line of a secret."""
    problems = [f"{folder.name}/{problem}" for problem in find_secrets(folder)]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"not bundled: {'; '.join(problems[:5])}{more}. Move it out of the bundled folders, or read it at run time"
        )


def find_secrets(folder: Path) -> Iterator[str]:
    """ "a/b.yaml line 3 looks like a Kaggle API key" for every file that must not be uploaded."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if FOLDERS & set(name.parts):
            if path.is_file():
                yield f"{name.as_posix()} lies in a folder of secrets"
        elif path.is_file():
            yield from (f"{name.as_posix()} {problem}" for problem in examine_file(path))


def examine_file(path: Path) -> Iterator[str]:
    """Problems of one file: its name, a pickle, secrets in its text."""
    if FILES.fullmatch(path.name):
        yield "is a file of secrets by its name"
        return
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_pickle(path, head):
        yield "is a pickle, which runs code when it is read: keep tensors as safetensors, other things as JSON"
    elif b"\0" not in head:
        yield from examine_text(path.read_bytes())


def is_pickle(path: Path, head: bytes) -> bool:
    """By content: a bare pickle, or a zip with one, as torch.save writes it; a compressed pickle only by its name.

    Wheels may have pickles, in their tests: they are code anyway.
    """
    if path.suffix in PICKLED:
        return True
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return path.suffix != ".whl" and any(name.endswith(PICKLED) for name in archive.namelist())
    return bool(PICKLE.match(head)) and not SAFETENSORS.match(head)


def examine_text(text: bytes) -> Iterator[str]:
    """Searches for fixed words first, which is almost as fast as reading, and for patterns only around them."""
    secrets: dict[int, str] = {}
    for description, prefix, pattern in WITH_PREFIX:
        secret = re.compile(pattern)
        secrets |= {start: description for start in find_all(text, prefix) if secret.match(text, start)}
    lower = text.lower()
    for ending in NAME_ENDINGS:
        for start in find_all(lower, ending):
            if VALUE_START.match(text, start + len(ending)):
                secrets |= dict(find_named(text, start))
    for start, description in sorted(secrets.items()):
        line = text.count(b"\n", 0, start) + 1
        yield f"line {line} looks like {description}"


def find_named(text: bytes, name_end: int) -> Iterator[tuple[int, str]]:
    """(start, description) of a secret whose name ends near `name_end`."""
    start = max(name_end - BEFORE, 0)
    for description, pattern in WITH_NAME:
        if match := re.search(pattern, text[start : name_end + AFTER], re.IGNORECASE):
            yield start + match.start(), description
            return


def find_all(text: bytes, word: bytes) -> Iterator[int]:
    """The position of each occurrence of the word."""
    start = text.find(word)
    while start >= 0:
        yield start
        start = text.find(word, start + len(word))
