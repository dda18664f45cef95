"""Push a notebook to Kaggle, once for the same content; wait for its end and fetch its output.

Leaves in output/pushes/<slug>/: kernel/ (what was pushed), pushed.json (stamp and version), v<N>/ (what came back).
The CLI reports a kernel's latest version only, so the notebook carries a stamp of its content, which a pull shows.
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
from kaggle_llm.kaggle.metadata import KERNEL, check_kernel_metadata

STATUS_POLL_SECONDS = 30.0
PUSH_RECHECKS = 4  # pulls for a version whose push got no answer, 5 s apart
NOTEBOOK = "notebook.ipynb"
FAILED_STATUSES = ("ERROR", "CANCEL_ACKNOWLEDGED")
ENDED_STATUSES = ("COMPLETE", *FAILED_STATUSES)
PUSH_ERROR = re.compile(r"^(Kernel push error: .*|The following are not valid .*)", re.MULTILINE)
LOG_LINES = 15  # of a failed kernel, shown in the message


def write_kernel(folder: Path, notebook: Path, metadata: dict[str, Any], content: str) -> str:
    """Write kernel-metadata.json and the notebook with its stamp; returns the stamp.

    content: hash of what the kernel's datasets hold, so that other weights give another stamp.
    Raises ValueError where the metadata breaks a rule.
    """
    body = records.read_json(notebook)
    stamp = records.hash_json([body, metadata, content])[:16]
    body["cells"][0]["source"] = "".join(body["cells"][0]["source"]) + f"\n\nContent {stamp}."
    shutil.rmtree(folder, ignore_errors=True)
    records.write_json(folder / NOTEBOOK, body)
    records.write_json(folder / KERNEL, metadata)
    check_kernel_metadata(folder)
    return stamp


def ensure_kernel(folder: Path, stamp: str) -> int:
    """The version of the kernel with this stamp; pushed, and so run, if the latest version has another one or failed.

    Raises KaggleError where Kaggle refuses it, OSError where a source was not attached.
    """
    metadata = records.read_json(folder / KERNEL)
    ref = metadata["id"]
    remote = pull_kernel(ref)
    if (
        remote
        and stamp in remote[0]
        and not find_missing_sources(metadata, remote[1])
        and read_status(ref)[0] not in FAILED_STATUSES
    ):
        version = find_version(ref, stamp)
        print(f"{ref}: version {version} is this notebook", flush=True)
    else:
        version = push_kernel(folder, ref, stamp, remote[0] if remote else "")
        print(f"{ref}: version {version} pushed", flush=True)
        check_attached_sources(ref, metadata)
    records.write_json(pushed_path(ref), {"stamp": stamp, "version": version})
    return version


def push_kernel(folder: Path, ref: str, stamp: str, before: str) -> int:
    """Push; returns the new version. After an error it may have arrived. before: the notebook of the latest version."""
    # Named in the metadata and as an argument: some pushes were reported to heed one of them only.
    accelerator = str(records.read_json(folder / KERNEL)["machine_shape"])
    try:
        output = run_kaggle(
            "kernels", "push", "-p", str(folder), *(["--accelerator", accelerator] if accelerator else [])
        )
    except KaggleError:
        for _ in range(PUSH_RECHECKS if stamp not in before else 0):
            pause(5.0)
            remote = pull_kernel(ref)
            if remote and stamp in remote[0]:
                return find_version(ref, stamp)
        raise
    failed = PUSH_ERROR.search(output)
    if failed:
        raise KaggleError(f"{ref}: {failed[0]}")
    pushed = re.search(r"Kernel version (\d+) successfully pushed", output)
    return int(pushed[1]) if pushed else find_version(ref, stamp)


def find_version(ref: str, stamp: str) -> int:
    """The number of the last version with this stamp, searched from the version that was noted last."""
    pushed = records.read_optional(pushed_path(ref), {"stamp": "", "version": 0})
    version = int(pushed["version"])
    match = version if pushed["stamp"] == stamp else 0
    while remote := pull_kernel(f"{ref}/{version + 1}"):
        version += 1
        match = version if stamp in remote[0] else match
    if not match:
        raise OSError(f"{ref}: no version has the stamp {stamp}, though the latest one had: push again")
    return match


def pull_kernel(ref: str) -> tuple[str, dict[str, Any]] | None:
    """Notebook and metadata of a version, or of the latest one if `ref` has no number; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ask_kaggle("kernels", "pull", ref, "-p", folder, "-m")
        except KaggleError as error:
            if error.is_absent:
                return None
            raise
        metadata = records.read_json(Path(folder) / KERNEL)
        return (Path(folder) / metadata["code_file"]).read_text(encoding="utf-8"), metadata


def find_missing_sources(wanted: dict[str, Any], remote: dict[str, Any]) -> list[str]:
    """Sources that the server did not attach, and internet that is on: the CLI does not report left-out models."""
    problems = []
    for field in ("dataset_sources", "competition_sources", "model_sources"):
        missing = sorted(set(wanted[field]) - set(remote.get(field) or []))
        problems += [f"{field} lacks {missing}"] if missing else []
    return problems + (["internet is on"] if remote.get("enable_internet") else [])


def check_attached_sources(ref: str, metadata: dict[str, Any]) -> None:
    remote = pull_kernel(ref)
    problems = find_missing_sources(metadata, remote[1]) if remote else ["it is not there"]
    if problems:
        raise OSError(
            f"{ref}: Kaggle made another kernel than was pushed: {'; '.join(problems)}. Is each source ready, and "
            f"yours, and have you accepted the competition's rules?"
        )


def read_status(ref: str) -> tuple[str, str]:
    """Status of the latest run, such as COMPLETE, and the failure message or ""."""
    output = ask_kaggle("kernels", "status", ref)
    status, why = re.search(r'has status "(?:\w+\.)?(\w+)"', output), re.search(r'Failure message: "(.*)"', output)
    if status is None:
        raise OSError(f"{ref}: kaggle kernels status says {output[-300:]!r}, which names no status")
    return status[1], why[1] if why else ""


def follow_kernel(ref: str, version: int) -> Path:
    """Wait until the kernel ended; returns output/pushes/<slug>/v<N>/ with its output and log.

    Raises OSError with the end of its log where it failed.
    """
    start, last = time.monotonic(), ""
    while True:
        status, why = read_status(ref)
        if status in ENDED_STATUSES:
            break
        message = f"{ref} version {version}: {status.lower()} for {(time.monotonic() - start) / 60:.0f} min"
        if message != last:
            print(message, flush=True)
        last = message
        pause(STATUS_POLL_SECONDS)
    output = fetch_output(ref, version)
    if status in FAILED_STATUSES:
        raise OSError(
            f"{ref} version {version} ended with {status}{f' ({why})' if why else ''}: {paths.relative(output)} "
            f"has its log, which ends with\n{last_lines(output)}"
        )
    return output


def fetch_output(ref: str, version: int) -> Path:
    """Download all files of the latest run and its log; returns their folder."""
    folder = paths.pushes_folder(ref.partition("/")[2]) / f"v{version}"

    def make(target: Path) -> None:
        ask_kaggle("kernels", "output", ref, "-p", str(target), "-o", "-q")

    records.make_folder(folder, make)
    return folder


def last_lines(output: Path) -> str:
    """The last lines of the log, which is a JSON list of pieces, or plain text."""
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in output.glob("*.log"))
    try:
        pieces = json.loads(text)
    except json.JSONDecodeError:
        pieces = []
    log = "".join(piece.get("data", "") for piece in pieces) or text
    return "\n".join(log.splitlines()[-LOG_LINES:])


def pushed_path(ref: str) -> Path:
    return paths.pushes_folder(ref.partition("/")[2]) / "pushed.json"
