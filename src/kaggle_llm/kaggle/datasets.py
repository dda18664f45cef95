"""Upload a dataset of a bundle to Kaggle: created, or a new version where its content differs, never twice.

The server's list of files decides, before and after the upload. output/pushes/<slug>/begun.json notes an upload that
was begun, so that a second start waits for its outcome.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kaggle_llm.base import paths, records
from kaggle_llm.kaggle.client import KaggleError, ask_kaggle, pause, read_answer, run_kaggle
from kaggle_llm.kaggle.metadata import DATASET, check_dataset_metadata, describe_dataset
from kaggle_llm.kaggle.predict import MANIFEST

READY_TIMEOUT = 1800.0  # seconds until an accepted version must be ready
LOST_ANSWER_TIMEOUT = 60.0  # seconds in which an upload whose answer was lost may still show up
READY_POLL_SECONDS = 5.0
UPLOAD_ATTEMPTS = 3  # after a network error


@dataclass(frozen=True)
class RemoteDataset:
    """A dataset as the server reports it."""

    status: str
    version: int


@dataclass(frozen=True)
class BegunUpload:
    """An upload of `content` that makes the version after `before`."""

    content: str
    before: int


def ensure_dataset(folder: Path, owner: str) -> int:
    """The version of OWNER/<folder's name> that holds exactly this folder; uploaded if the last version does not.

    Raises KaggleError where Kaggle refuses it, TimeoutError where it does not become ready, OSError where a file did
    not arrive. The same call again continues.
    """
    ref, content = f"{owner}/{folder.name}", records.hash_file(folder / MANIFEST)
    wanted = list_folder(folder)
    remote = wait_for_begun(ref, content)
    for attempt in range(1, UPLOAD_ATTEMPTS + 1):
        if remote and not compare_files(wanted, list_remote(ref)):
            break
        try:
            remote = send(folder, ref, owner, BegunUpload(content, remote.version if remote else 0))
        except KaggleError as error:
            if not error.is_transient or attempt == UPLOAD_ATTEMPTS:
                raise
            print(f"{error}; uploading again", flush=True)
        else:
            check_arrival(ref, wanted)
            break
    assert remote, "the last attempt ends the loop or raises"
    print(f"{ref}: version {remote.version} has this content, {len(wanted)} files", flush=True)
    return finish(ref, remote.version)


def list_folder(folder: Path) -> dict[str, int]:
    """Name → bytes of all files that have to arrive: those in the manifest, and the manifest."""
    listed = {entry["path"]: entry["bytes"] for entry in records.read_json(folder / MANIFEST)["files"]}
    return listed | {MANIFEST: (folder / MANIFEST).stat().st_size}


def list_remote(ref: str) -> dict[str, int]:
    """Name → bytes of the files of the current version."""
    files: dict[str, int] = {}
    token = ""
    while True:
        words = ["datasets", "files", ref, "--page-size", "200", "--format", "json"]
        output = ask_kaggle(*words, *(["--page-token", token] if token else []))
        files |= {entry["name"]: int(entry["size"]) for entry in read_answer(output) or []}
        next_page = re.search(r"^Next Page Token = (\S+)$", output, re.MULTILINE)
        if next_page is None:
            return files
        token = next_page[1]


def compare_files(wanted: Mapping[str, int], arrived: Mapping[str, int]) -> list[str]:
    """One message a file that differs, sorted by name; [] where none does."""
    problems = [f"{name} did not arrive" for name in wanted if name not in arrived]
    problems += [f"{name} should not be there" for name in arrived if name not in wanted]
    problems += [
        f"{name} has {arrived[name]} bytes, not {size}"
        for name, size in wanted.items()
        if name in arrived and arrived[name] != size
    ]
    return sorted(problems)


def check_arrival(ref: str, wanted: Mapping[str, int]) -> None:
    problems = compare_files(wanted, list_remote(ref))
    if problems:
        raise OSError(
            f"{ref}: {len(problems)} file(s) are not as sent, first: {problems[0]}. The same command uploads all again"
        )


def read_remote(ref: str) -> RemoteDataset | None:
    """The dataset on the server; None where it does not exist."""
    try:
        answer = read_answer(ask_kaggle("datasets", "status", ref, "--format", "json"))
    except KaggleError as error:
        if error.is_absent:
            return None
        raise
    return RemoteDataset(answer["status"], int(answer["current_version_number"]))


def wait_for_begun(ref: str, content: str) -> RemoteDataset | None:
    """The dataset once no upload is under way: neither on the server nor of an earlier start that was interrupted."""
    remote, path = read_remote(ref), begun_path(ref)
    begun = BegunUpload(**records.read_json(path)) if path.is_file() else None
    if begun and begun.content == content and (remote.version if remote else 0) == begun.before:
        print(f"{ref}: an earlier upload was interrupted; looking for version {begun.before + 1}", flush=True)
        remote = wait_for_version(ref, begun.before + 1) or remote
    if remote and remote.status != "ready":
        return wait_until_ready(ref, remote.version)
    return remote


def send(folder: Path, ref: str, owner: str, begun: BegunUpload) -> RemoteDataset:
    """Create the dataset or its next version. The server's state decides whether it worked, not the CLI's output."""
    records.write_json(begun_path(ref), asdict(begun))
    failure = None
    try:
        output = upload(folder, owner, "create" if begun.before == 0 else "version", begun.content)
    except KaggleError as error:
        failure = error
    else:
        refused = re.search(r"^Dataset (?:version )?creation error: .*", output, re.MULTILINE)
        failure = KaggleError(f"{ref}: {refused[0]}") if refused else None
    if failure is None or wait_for_version(ref, begun.before + 1):  # it may have arrived in spite of the error
        return wait_until_ready(ref, begun.before + 1)
    raise failure


def upload(folder: Path, owner: str, verb: str, content: str) -> str:
    """Output of the CLI's `create` or `version` of the folder, with the owner in its metadata.

    The CLI keeps its resume state and the tar of each folder in a temporary folder, one for each content: otherwise it
    would resume a file with the bytes of another one of the same size and time.
    """
    pushes = paths.pushes_folder(folder.name)
    temporary, staged = pushes / f"sending-{content[:16]}", pushes / "staged" / folder.name
    for path in [path for path in pushes.glob("sending-*") if path != temporary]:
        shutil.rmtree(path)
    temporary.mkdir(parents=True, exist_ok=True)
    stage_links(folder, staged, owner)
    check_dataset_metadata(staged)
    words = ["datasets", verb, "-p", str(staged), "-r", "tar", "-q"]
    return run_kaggle(*words, *(["-m", content] if verb == "version" else []), variables={"TMPDIR": str(temporary)})


def stage_links(folder: Path, staged: Path, owner: str) -> None:
    """Link the folder's entries beside a dataset-metadata.json with the owner, so that the bundle stays unchanged."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != DATASET:
            (staged / path.name).symlink_to(path.resolve())
    records.write_json(staged / DATASET, describe_dataset(folder.name, owner))


def wait_for_version(ref: str, version: int) -> RemoteDataset | None:
    """The dataset as soon as it has this version, ready or not; None after LOST_ANSWER_TIMEOUT."""
    for left in range(int(LOST_ANSWER_TIMEOUT / READY_POLL_SECONDS), -1, -1):
        remote = read_remote(ref)
        if remote and remote.version >= version:
            return remote
        if left:
            pause(READY_POLL_SECONDS)
    return None


def wait_until_ready(ref: str, version: int) -> RemoteDataset:
    """The dataset when the version is ready. Raises TimeoutError after READY_TIMEOUT, OSError where it failed."""
    remote = None
    for attempt in range(int(READY_TIMEOUT / READY_POLL_SECONDS) + 1):
        remote = read_remote(ref)
        if remote and remote.version >= version and remote.status == "ready":
            return remote
        if remote and remote.status in ("failed", "deleted"):
            raise OSError(
                f"{ref}: version {remote.version} has the status {remote.status}: push again, or look at its page"
            )
        if attempt % 12 == 1:
            print(f"{ref}: {remote.status if remote else 'not there'}, waiting for version {version}", flush=True)
        pause(READY_POLL_SECONDS)
    raise TimeoutError(
        f"{ref}: version {version} is not ready after {READY_TIMEOUT / 60:.0f} min ({remote}): push again later"
    )


def finish(ref: str, version: int) -> int:
    """Remove the note and the temporary folders of the upload; returns `version`."""
    begun_path(ref).unlink(missing_ok=True)
    for path in paths.pushes_folder(ref.partition("/")[2]).glob("sending-*"):
        shutil.rmtree(path)
    return version


def begun_path(ref: str) -> Path:
    return paths.pushes_folder(ref.partition("/")[2]) / "begun.json"
