"""A notebook on its way to Kaggle: pushed once for the same content, followed to its end, its output fetched.

Leaves in output/pushes/<slug>/: kernel/ (what was pushed), pushed.json (stamp and version), v<N>/ (what came back).
The CLI speaks of a kernel's latest version only, so the notebook carries a stamp of its content, which a pull shows.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.kaggle.client import KaggleError, ask_kaggle, pause, run_kaggle
from kaggle_llm.kaggle.metadata import KERNEL, check_kernel

LOOKS = 30.0  # seconds between two looks at a running kernel
GRACE = 4  # looks for a version whose push got no answer, 5 s apart
NOTEBOOK = "notebook.ipynb"
FAILED = ("ERROR", "CANCEL_ACKNOWLEDGED")
ENDED = ("COMPLETE", *FAILED)
FAILED_WORDS = re.compile(r"^(Kernel push error: .*|The following are not valid .*)", re.MULTILINE)
WORDS_OF_LOG = 15  # last lines that a failed kernel's message shows


def write_kernel(folder: Path, notebook: Path, metadata: dict[str, Any], content: str) -> str:
    """kernel-metadata.json and the notebook with its stamp; returns the stamp.

    content: hash of what the kernel's datasets hold, so that other weights are another kernel.
    Raises ValueError where the metadata breaks a rule.
    """
    body = records.read_json(notebook)
    stamp = records.hash_json([body, metadata, content])[:16]
    body["cells"][0]["source"] = "".join(body["cells"][0]["source"]) + f"\n\nContent {stamp}."
    shutil.rmtree(folder, ignore_errors=True)
    records.write_json(folder / NOTEBOOK, body)
    records.write_json(folder / KERNEL, metadata)
    check_kernel(folder)
    return stamp


def ensure_kernel(folder: Path, stamp: str) -> int:
    """The version of the kernel that has this stamp: pushed, which runs it, where the latest one does not, or failed.

    Raises KaggleError where Kaggle refuses it, OSError where a source was not attached.
    """
    metadata = records.read_json(folder / KERNEL)
    ref = metadata["id"]
    remote = pull_kernel(ref)
    if remote and stamp in remote[0] and not find_lost_sources(metadata, remote[1]) and not has_failed(ref):
        version = find_version(ref, stamp)
        print(f"{ref}: version {version} is this notebook", flush=True)
    else:
        version = push_kernel(folder, ref, stamp, remote[0] if remote else "")
        print(f"{ref}: version {version} pushed", flush=True)
        check_sources(ref, metadata)
    records.write_json(pushed_path(ref), {"stamp": stamp, "version": version})
    return version


def push_kernel(folder: Path, ref: str, stamp: str, before: str) -> int:
    """The new version; a push without an answer may have arrived. before: the notebook of the latest version."""
    try:
        said = run_kaggle("kernels", "push", "-p", str(folder), "--accelerator", machine_shape(folder))
    except KaggleError:
        for _ in range(GRACE if stamp not in before else 0):
            pause(5.0)
            remote = pull_kernel(ref)
            if remote and stamp in remote[0]:
                return find_version(ref, stamp)
        raise
    failed = FAILED_WORDS.search(said)
    if failed:
        raise KaggleError(f"{ref}: {failed[0]}")
    found = re.search(r"Kernel version (\d+) successfully pushed", said)
    return int(found[1]) if found else find_version(ref, stamp)


def machine_shape(folder: Path) -> str:
    """Said twice, in the metadata and as an argument: some pushes were reported to heed one of them only."""
    return str(records.read_json(folder / KERNEL)["machine_shape"])


def find_version(ref: str, stamp: str) -> int:
    """The number of the last version with this stamp, looked for from the last number that is known."""
    path = pushed_path(ref)
    pushed: dict[str, Any] = records.read_json(path) if path.is_file() else {"stamp": "", "version": 0}
    version = int(pushed["version"])
    found = version if pushed["stamp"] == stamp else 0
    while remote := pull_kernel(f"{ref}/{version + 1}"):
        version += 1
        found = version if stamp in remote[0] else found
    if not found:
        raise OSError(f"{ref}: no version has the stamp {stamp}, though the latest one had: push again")
    return found


def pull_kernel(ref: str) -> tuple[str, dict[str, Any]] | None:
    """The notebook and the metadata of a version, of the latest one without a number; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ask_kaggle("kernels", "pull", ref, "-p", folder, "-m")
        except KaggleError as error:
            if error.absent:
                return None
            raise
        metadata = records.read_json(Path(folder) / KERNEL)
        return (Path(folder) / metadata["code_file"]).read_text(encoding="utf-8"), metadata


def find_lost_sources(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What the server did not attach, or set otherwise; the CLI does not say which model sources it left out."""
    problems = []
    for field in ("dataset_sources", "competition_sources", "model_sources"):
        lost = sorted(set(wanted[field]) - set(found.get(field) or []))
        problems += [f"{field} lacks {lost}"] if lost else []
    return problems + (["internet is on"] if found.get("enable_internet") else [])


def check_sources(ref: str, metadata: dict[str, Any]) -> None:
    remote = pull_kernel(ref)
    problems = find_lost_sources(metadata, remote[1]) if remote else ["it is not there"]
    if problems:
        raise OSError(
            f"{ref}: Kaggle made another kernel than was pushed: {'; '.join(problems)}. Is each source ready, and "
            f"yours, and have you accepted the competition's rules?"
        )


def has_failed(ref: str) -> bool:
    """Whether the latest run ended without success: then the same notebook is pushed, and so run, again."""
    return read_status(ref)[0] in FAILED


def read_status(ref: str) -> tuple[str, str]:
    """The status of the latest run, such as COMPLETE, and why it failed, or ""."""
    said = ask_kaggle("kernels", "status", ref)
    found, why = re.search(r'has status "(?:\w+\.)?(\w+)"', said), re.search(r'Failure message: "(.*)"', said)
    if found is None:
        raise OSError(f"{ref}: kaggle kernels status says {said[-300:]!r}, which names no status")
    return found[1], why[1] if why else ""


def follow_kernel(ref: str, version: int) -> Path:
    """Wait until the kernel ended; its output and log in output/pushes/<slug>/v<N>/.

    Raises OSError with the end of its log where it failed.
    """
    start, last = time.monotonic(), ""
    while (found := read_status(ref))[0] not in ENDED:
        said = f"{ref} version {version}: {found[0].lower()} for {(time.monotonic() - start) / 60:.0f} min"
        if said != last:
            print(said, flush=True)
        last = said
        pause(LOOKS)
    status, why = found
    output = fetch_output(ref, version)
    if status in FAILED:
        raise OSError(
            f"{ref} version {version} ended with {status}{f' ({why})' if why else ''}: {paths.relative(output)} "
            f"has its log, which ends with\n{last_lines(output)}"
        )
    return output


def fetch_output(ref: str, version: int) -> Path:
    """All files that the latest run left, and its log."""
    folder = paths.pushes_folder(ref.partition("/")[2]) / f"v{version}"

    def make(target: Path) -> None:
        ask_kaggle("kernels", "output", ref, "-p", str(target), "-o", "-q")

    records.make_folder(folder, make, lambda _: None)
    return folder


def last_lines(output: Path) -> str:
    """The last lines of the log, which is a JSON list of pieces, or plain text."""
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in output.glob("*.log"))
    try:
        pieces = json.loads(text)
    except json.JSONDecodeError:
        pieces = []
    said = "".join(piece.get("data", "") for piece in pieces) or text
    return "\n".join(said.splitlines()[-WORDS_OF_LOG:])


def pushed_path(ref: str) -> Path:
    return paths.pushes_folder(ref.partition("/")[2]) / "pushed.json"
