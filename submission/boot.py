"""Find the bundle under Kaggle's mounts and run its prediction as a process. Standard library only.

Called by the notebook, before anything of the bundle can be imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MANIFEST = "MANIFEST.json"
LIMIT = 9 * 3600 - 600.0  # seconds; Kaggle's usual limit counts from before the notebook starts


def find_datasets(mount: Path) -> dict[str, Path]:
    """slug → folder of every attached dataset of ours, told by its manifest, the newest mount layout first."""
    found: dict[str, Path] = {}
    for pattern in ("datasets/*/*", "*"):
        for path in sorted(mount.glob(f"{pattern}/{MANIFEST}")):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest, dict) and "slug" in manifest:  # somebody else's dataset may have a MANIFEST too
                found.setdefault(manifest["slug"], path.parent)
    return found


def find_competition(mount: Path, name: str) -> Path:
    for folder in (mount / "competitions" / name, mount / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"competition {name} is not attached: there is no {mount / 'competitions' / name}")


def predict_command(code: Path, root: Path, deadline: float) -> list[str]:
    """The process that writes working/submission.csv, every folder spelled out. deadline: seconds since the epoch."""
    manifest = json.loads((code / MANIFEST).read_text(encoding="utf-8"))
    datasets = find_datasets(root / "input")
    missing = sorted(set(manifest["models"].values()) - set(datasets))
    if missing:
        raise FileNotFoundError(f"dataset(s) {missing} are not attached; attached are {sorted(datasets)}")
    command = [sys.executable, "-m", "kaggle_llm.kaggle.predict", "--bundle", str(code)]
    command += ["--competition", str(find_competition(root / "input", manifest["competition"]))]
    for name, slug in sorted(manifest["models"].items()):
        command += ["--model", f"{name}={datasets[slug] / 'model'}"]
    return [*command, "--working", str(root / "working"), "--deadline", str(deadline)]


def look_at_machine(code: Path, root: Path) -> None:
    """Print what the machine is beside the runtime that the bundle was made for.

    Raises RuntimeError on Kaggle where it will not do: no GPU, another Python, too small a disk.
    """
    sys.path.insert(0, str(code / "src"))
    from kaggle_llm.runtime.machine import check_machine

    sys.path.remove(str(code / "src"))
    runtime = json.loads((code / MANIFEST).read_text(encoding="utf-8"))["runtime"]
    print(f"the machine beside runtime {runtime['name']}:")
    found = check_machine(runtime, Path(tempfile.gettempdir()), root / "working")
    for finding in found:
        print(f"  {finding.level:8}{finding.name}: {finding.detail}", flush=True)
    refused = [finding.name for finding in found if finding.level == "refused"]
    if refused and "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        raise RuntimeError(f"this machine will not do ({', '.join(refused)}): the reasons stand above")


def environment(code: Path) -> dict[str, str]:
    """The bundle's own package first, whatever else is installed; no network, no writing into the mount."""
    path = os.pathsep.join(part for part in (str(code / "src"), os.environ.get("PYTHONPATH")) if part)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {
        **os.environ,
        **offline,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def kill_session(session: int) -> None:
    """End the process that leads the session and all that it started, in whatever process groups they are."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()  # state, parent, group, session, …
            if int(fields[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (OSError, IndexError):  # ended meanwhile
            continue
    with contextlib.suppress(ProcessLookupError):  # without /proc
        os.killpg(session, signal.SIGKILL)


def main(code: Path, root: Path) -> None:
    """Run the prediction of the bundle `code`, its log shown as it comes; kill it at the time limit.

    root: the folder of Kaggle's input/ and working/. What was offered before a kill stays a valid submission.
    Raises RuntimeError where the process fails, or is killed before it offered anything.
    """
    limit = float(os.environ.get("KAGGLE_LLM_LIMIT", LIMIT))
    deadline = time.time() + limit
    look_at_machine(code, root)
    command, working = predict_command(code, root, deadline), root / "working"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, cwd=working, env=environment(code), start_new_session=True, **how)
    late = threading.Event()

    def kill() -> None:
        late.set()
        kill_session(process.pid)

    timer = threading.Timer(deadline - time.time(), kill)
    timer.start()
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
        returned = process.wait()
    except BaseException:  # an interrupt: nothing of ours goes on alone
        kill_session(process.pid)
        raise
    finally:
        timer.cancel()
    if late.is_set() and (working / "submission.csv").is_file():
        print(f"killed at the limit of {limit:.0f} s: submission.csv is what was offered before")
    elif late.is_set():
        raise RuntimeError(f"killed at the limit of {limit:.0f} s, before any submission was offered")
    elif returned:
        raise RuntimeError(f"prediction ended with exit code {returned}: its log stands above")
