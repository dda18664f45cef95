"""One dataset of a bundle on its way to Kaggle: created or versioned where its content differs, never twice.

What lies on the server decides: its files are listed and compared before and after. A note of a call that was begun,
output/pushes/<slug>/begun.json, tells a second start that its outcome may still arrive.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kaggle_llm.base import paths, records
from kaggle_llm.kaggle.client import KaggleError, ask_kaggle, pause, read_answer, run_kaggle
from kaggle_llm.kaggle.metadata import DATASET, check_dataset, describe_dataset
from kaggle_llm.kaggle.predict import MANIFEST

PATIENCE = 1800.0  # seconds until a version that Kaggle has accepted must be ready
GRACE = 60.0  # seconds in which a call whose answer was lost may still show its effect
LOOKS = 5.0  # seconds between two looks
SENDS = 3  # times that a dataset is sent when the network stumbles


@dataclass(frozen=True)
class Remote:
    """A dataset as the server describes it."""

    status: str
    version: int


@dataclass(frozen=True)
class Begun:
    """A call that would make the version after `before` out of `content`."""

    content: str
    before: int


def ensure_dataset(folder: Path, owner: str) -> int:
    """The version of OWNER/<folder's name> that holds exactly this folder; made where the last one does not.

    Raises KaggleError where Kaggle refuses it, TimeoutError where it does not become ready, OSError where a file did
    not arrive. The same call goes on after any of them.
    """
    ref, content = f"{owner}/{folder.name}", records.hash_file(folder / MANIFEST)
    wanted = list_folder(folder)
    remote = settle(ref, content)
    for attempt in range(1, SENDS + 1):
        if remote and not compare_files(wanted, list_remote(ref)):
            print(f"{ref}: version {remote.version} holds it", flush=True)
            return finish(ref, remote.version)
        try:
            remote = send(folder, ref, owner, Begun(content, remote.version if remote else 0))
        except KaggleError as error:
            if not error.stumbled or attempt == SENDS:
                raise
            print(f"{error}; sent again", flush=True)
            continue
        check_arrival(ref, wanted)
        print(f"{ref}: version {remote.version} is there, {len(wanted)} files", flush=True)
        return finish(ref, remote.version)
    raise AssertionError("the last attempt returns or raises")


def list_folder(folder: Path) -> dict[str, int]:
    """Name → bytes of all that has to arrive: what the manifest lists, and the manifest."""
    listed = {entry["path"]: entry["bytes"] for entry in records.read_json(folder / MANIFEST)["files"]}
    return listed | {MANIFEST: (folder / MANIFEST).stat().st_size}


def list_remote(ref: str) -> dict[str, int]:
    """Name → bytes of the files of the current version, page by page."""
    found: dict[str, int] = {}
    token = ""
    while True:
        words = ["datasets", "files", ref, "--page-size", "200", "--format", "json"]
        said = ask_kaggle(*words, *(["--page-token", token] if token else []))
        found |= {entry["name"]: int(entry["size"]) for entry in read_answer(said) or []}
        more = re.search(r"^Next Page Token = (\S+)$", said, re.MULTILINE)
        if more is None:
            return found
        token = more[1]


def compare_files(wanted: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """What differs, by name; [] where nothing does."""
    problems = [f"{name} did not arrive" for name in wanted if name not in found]
    problems += [f"{name} should not be there" for name in found if name not in wanted]
    problems += [
        f"{name} has {found[name]} bytes, not {size}"
        for name, size in wanted.items()
        if name in found and found[name] != size
    ]
    return sorted(problems)


def check_arrival(ref: str, wanted: Mapping[str, int]) -> None:
    problems = compare_files(wanted, list_remote(ref))
    if problems:
        raise OSError(
            f"{ref}: {len(problems)} file(s) are not as sent, first: {problems[0]}. The same command sends all again"
        )


def read_remote(ref: str) -> Remote | None:
    """None where there is no such dataset of ours."""
    try:
        answer = read_answer(ask_kaggle("datasets", "status", ref, "--format", "json"))
    except KaggleError as error:
        if error.absent:
            return None
        raise
    return Remote(answer["status"], int(answer["current_version_number"]))


def settle(ref: str, content: str) -> Remote | None:
    """The dataset, once nothing is under way: neither on the server nor by a call of ours whose end nobody saw."""
    remote, path = read_remote(ref), begun_path(ref)
    begun = Begun(**records.read_json(path)) if path.is_file() else None
    if begun and begun.content == content and (remote.version if remote else 0) == begun.before:
        print(f"{ref}: an earlier start was interrupted; is version {begun.before + 1} there?", flush=True)
        remote = wait_for(ref, begun.before + 1, GRACE) or remote
    if remote and remote.status != "ready":
        return wait_until_ready(ref, remote.version)
    return remote


def send(folder: Path, ref: str, owner: str, begun: Begun) -> Remote:
    """Create the dataset or its next version; what the server has then counts, not what the CLI says."""
    records.write_json(begun_path(ref), asdict(begun))
    failure = None
    try:
        said = upload(folder, owner, "create" if begun.before == 0 else "version", begun.content)
    except KaggleError as error:
        failure = error
    else:
        refused = re.search(r"^Dataset (?:version )?creation error: .*", said, re.MULTILINE)
        failure = KaggleError(f"{ref}: {refused[0]}") if refused else None
    if failure is None:
        return wait_until_ready(ref, begun.before + 1)
    if wait_for(ref, begun.before + 1, GRACE):  # it was done all the same
        return wait_until_ready(ref, begun.before + 1)
    raise failure


def upload(folder: Path, owner: str, verb: str, content: str) -> str:
    """What the CLI says of a `create` or `version` of the folder, with the owner in its metadata.

    The CLI keeps what it needs to resume, and the tar of each folder, in a temporary folder of this content alone: it
    would resume a file of the same size and time with the bytes of another one.
    """
    pushes = paths.pushes_folder(folder.name)
    temporary, staged = pushes / f"sending-{content[:16]}", pushes / "staged" / folder.name
    for left in [path for path in pushes.glob("sending-*") if path != temporary]:
        shutil.rmtree(left)
    temporary.mkdir(parents=True, exist_ok=True)
    stage_links(folder, staged, owner)
    check_dataset(staged)
    words = ["datasets", verb, "-p", str(staged), "-r", "tar", "-q"]
    return run_kaggle(*words, *(["-m", content] if verb == "version" else []), more={"TMPDIR": str(temporary)})


def stage_links(folder: Path, staged: Path, owner: str) -> None:
    """The folder's entries as links, beside a dataset-metadata.json that names the owner: a bundle stays as it is."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != DATASET:
            (staged / path.name).symlink_to(path.resolve())
    records.write_json(staged / DATASET, describe_dataset(folder.name, owner))


def wait_for(ref: str, version: int, seconds: float) -> Remote | None:
    """The dataset as soon as it has this version, ready or not; None where it does not get it in that time."""
    for left in range(int(seconds / LOOKS), -1, -1):
        remote = read_remote(ref)
        if remote and remote.version >= version:
            return remote
        if left:
            pause(LOOKS)
    return None


def wait_until_ready(ref: str, version: int) -> Remote:
    """Raises TimeoutError where it takes longer than PATIENCE, OSError where Kaggle gives up."""
    remote = None
    for look in range(int(PATIENCE / LOOKS) + 1):
        remote = read_remote(ref)
        if remote and remote.version >= version and remote.status == "ready":
            return remote
        if remote and remote.status in ("failed", "deleted"):
            raise OSError(
                f"{ref}: Kaggle says {remote.status} of version {remote.version}: send it again, or look there"
            )
        if look % 12 == 1:
            print(f"{ref}: {remote.status if remote else 'not there'}, waiting for version {version}", flush=True)
        pause(LOOKS)
    raise TimeoutError(
        f"{ref}: version {version} is not ready after {PATIENCE / 60:.0f} min ({remote}): start the same command later"
    )


def finish(ref: str, version: int) -> int:
    """Nothing is under way any more."""
    begun_path(ref).unlink(missing_ok=True)
    for left in paths.pushes_folder(ref.partition("/")[2]).glob("sending-*"):
        shutil.rmtree(left)
    return version


def begun_path(ref: str) -> Path:
    return paths.pushes_folder(ref.partition("/")[2]) / "begun.json"
