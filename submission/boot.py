"""Find the bundle under Kaggle's mounts and run its prediction as a process. Standard library only.

Called by the notebook before anything of the bundle can be imported. Leaves submission.csv and timing.json in
working/: {"rows", "install_seconds", "load_seconds", "seconds"}.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MANIFEST = "MANIFEST.json"
OFFERED = "offered.json"  # left by predict.py with the first submission that is more than the sample
USUAL_HOURS, SPARE_SECONDS = 9.0, 600.0  # Kaggle's time limit counts from before the notebook starts
LAYOUTS = ("datasets/*/*", "*")  # how Kaggle mounts datasets now, and did before; else all of the mount is searched
TICK_SECONDS = 60.0  # between two lines with the time left
TRIAL_BYTES = 2**20  # that must fit into the working folder


def find_datasets(mount: Path, wanted: set[str]) -> dict[str, Path]:
    """slug → folder of every attached dataset of ours, recognised by its manifest, the newest mount layout first.

    wanted: slugs; where one of them is not found, all of the mount is searched.
    """
    datasets: dict[str, Path] = {}
    for path in (path for layout in LAYOUTS for path in sorted(mount.glob(f"{layout}/{MANIFEST}"))):
        add_dataset(datasets, path.parent)
    if not wanted <= set(datasets):
        for folder, folders, files in os.walk(mount):
            if MANIFEST in files and add_dataset(datasets, Path(folder)):
                folders.clear()  # no dataset of ours is inside another one
    return datasets


def add_dataset(datasets: dict[str, Path], folder: Path) -> bool:
    """Add the folder if it is a dataset of ours, and say whether: another one may have a MANIFEST.json too."""
    try:
        manifest = read_manifest(folder)
    except ValueError:  # no JSON, or no text
        return False
    ours = isinstance(manifest, dict) and "slug" in manifest
    if ours:
        datasets.setdefault(manifest["slug"], folder)
    return ours


def find_competition(mount: Path, name: str) -> Path:
    for folder in (mount / "competitions" / name, mount / name):
        if folder.is_dir():
            return folder
    for folder, folders, _ in os.walk(mount):
        if name in folders:
            return Path(folder) / name
    raise FileNotFoundError(f"competition {name} is not attached: there is no {mount / 'competitions' / name}")


def find_model(mount: Path, source: str) -> Path:
    """The mounted folder of "owner/model/framework/variation/version", in upper or lower case."""
    for name in (f"models/{source}", source.partition("/")[2]):
        wanted = (mount / name).as_posix().lower()
        depth = "/".join("*" for _ in name.split("/"))
        for folder in [mount / name, *mount.glob(depth)]:
            if folder.as_posix().lower() == wanted and folder.is_dir():
                return folder
    raise FileNotFoundError(f"model {source} is not attached: there is no {mount / 'models' / source}")


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def predict_command(code: Path, root: Path, deadline: float) -> list[str]:
    """The command that writes working/submission.csv, with every folder. deadline: seconds since the epoch."""
    manifest, mount = read_manifest(code), root / "input"
    names = {model[key] for model in manifest["models"] for key in ("folder", "base") if key in model}
    slugs = {name for name in names if "/" not in name}
    datasets = find_datasets(mount, slugs)
    missing = sorted(slugs - set(datasets))
    if missing:
        raise FileNotFoundError(f"dataset(s) {missing} are not attached; attached are {sorted(datasets)}")
    competition = choose_rows(find_competition(mount, manifest["competition"]), datasets)
    command = [sys.executable, "-m", "kaggle_llm.kaggle.predict", "--bundle", str(code)]
    command += ["--competition", str(competition)]
    for name in sorted(names):
        folder = datasets[name] / "model" if name in datasets else find_model(mount, name)
        command += ["--place", f"{name}={folder}"]
    return [*command, "--working", str(root / "working"), "--deadline", str(deadline)]


def choose_rows(competition: Path, datasets: dict[str, Path]) -> Path:
    """The competition's folder; in a timed run a copy with the attached rows as its test set, never in a rerun."""
    rows = [folder for folder in datasets.values() if read_manifest(folder).get("kind") == "rows"]
    if not rows or "KAGGLE_IS_COMPETITION_RERUN" in os.environ:
        return competition
    staged = Path(tempfile.mkdtemp(prefix="rows-"))
    listed = {entry["path"]: entry["sha256"] for entry in read_manifest(rows[0])["files"]}
    tables = [rows[0] / name for name in listed if name.endswith(".csv")]
    for path in tables:
        if not path.is_file() or hash_file(path) != listed[path.name]:
            raise ValueError(f"{path} is not the file of the manifest: upload the rows again")
    for path in [*tables, *competition.iterdir()]:
        if not (staged / path.name).is_symlink():
            (staged / path.name).symlink_to(path)
    print(f"the rows of {rows[0].name} instead of the test set", flush=True)
    return staged


def compare_machine(code: Path, root: Path) -> None:
    """Print how the machine differs from the runtime that the bundle was made for.

    Raises RuntimeError on Kaggle where it cannot run the bundle: no GPU, another Python, too small a disk.
    """
    sys.path.insert(0, str(code / "src"))
    from kaggle_llm.runtime.machine import check_machine

    sys.path.remove(str(code / "src"))
    runtime = read_manifest(code)["runtime"]
    print(f"this machine, compared with runtime {runtime['name']}:")
    findings = check_machine(runtime, Path(tempfile.gettempdir()), root / "working")
    for finding in findings:
        print(f"  {finding.level:8}{finding.name}: {finding.detail}", flush=True)
    refused = [finding.name for finding in findings if finding.level == "refused"]
    if refused and "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        raise RuntimeError(f"this machine cannot run the bundle ({', '.join(refused)}): see the reasons above")
    check_room(root / "working")


def check_room(working: Path) -> None:
    """Raises RuntimeError where nothing can be written: the prediction would notice only at its end."""
    probe = working / ".probe"
    try:
        probe.write_bytes(bytes(TRIAL_BYTES))
    except OSError as error:
        raise RuntimeError(
            f"{working} takes no file of {TRIAL_BYTES // 2**20} MB ({error}): make room in it"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def install_wheels(code: Path, root: Path) -> Path | None:
    """Install the bundle's wheels, offline and once a session; returns their folder, None where it has no wheels.

    The image's packages stay as they are: only the processes started from here see this folder.
    Raises RuntimeError with the wheel's name where one is broken or of another Python.
    """
    manifest = read_manifest(code)
    if manifest.get("wheels") is None:
        return None
    datasets = find_datasets(root / "input", {manifest["wheels"]})
    if manifest["wheels"] not in datasets:
        raise FileNotFoundError(f"dataset {manifest['wheels']} is not attached; attached are {sorted(datasets)}")
    python, running = manifest["runtime"]["image"]["python"], ".".join(map(str, sys.version_info[:2]))
    if python != running and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ:
        print(
            f"the wheels are for Python {python}, this is {running}: this environment's packages are used", flush=True
        )
        return None
    source = datasets[manifest["wheels"]]
    site = Path(tempfile.gettempdir()) / f"kaggle_llm_site-{read_manifest(source)['content'][:16]}"
    if not (site / "INSTALLED").is_file():
        start = time.monotonic()
        shutil.rmtree(site, ignore_errors=True)
        wheels = check_wheels(source / "wheels")
        print(f"installing {len(wheels)} packages", flush=True)
        run_pip(wheels, site)
        (site / "INSTALLED").touch()
        print(f"installed in {time.monotonic() - start:.0f} s: {site}", flush=True)
    return site


def list_paths(site: Path) -> list[str]:
    """The folder and those named in its .pth files, which Python reads only in its own site-packages."""
    lines = [line.strip() for path in sorted(site.glob("*.pth")) for line in path.read_text().splitlines()]
    return [str(site), *(str(site / line) for line in lines if line and (site / line).is_dir())]


def check_wheels(source: Path) -> list[Path]:
    """Link the wheels of SHA256SUMS under their own names; returns the links. Raises RuntimeError for a broken one.

    A line of SHA256SUMS: hash, name in the dataset, name of the wheel (which Kaggle may change).
    """
    links = Path(tempfile.mkdtemp(prefix="wheels-"))
    for line in (source / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, stored, name = line.split()
        path = source / stored
        if not path.is_file():
            why = "unpacked, so it cannot be installed" if path.is_dir() else "missing: was the upload cut?"
            raise RuntimeError(f"wheel {name} in {source} is {why}")
        if hash_file(path) != digest:
            raise RuntimeError(f"wheel {name} in {source} is not the one of SHA256SUMS: upload the wheels again")
        (links / name).symlink_to(path)
    return sorted(links.iterdir())


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_pip(wheels: list[Path], site: Path) -> None:
    """Install without a pip.conf, and without modules from the working folder."""
    command = [sys.executable, "-P", "-m", "pip", "--isolated", "install", "--no-index", "--no-deps", "--no-compile"]
    command += ["--target", str(site), "--disable-pip-version-check", "--no-warn-conflicts", "--quiet"]
    command += map(str, wheels)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the wheels do not install: {done.stderr.strip()[-1000:]}")


def environment(code: Path, site: Path | None = None) -> dict[str, str]:
    """Variables that put the bundle's own packages first, keep libraries offline and write nothing into the mount."""
    parts = (str(code / "src"), *(list_paths(site) if site else []), os.environ.get("PYTHONPATH"))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    image = {"USE_TF": "0", "TRANSFORMERS_NO_TF": "1", "VLLM_NO_USAGE_STATS": "1"}  # the image has TensorFlow too
    libraries = os.pathsep.join(part for part in ("/usr/local/nvidia/lib64", os.environ.get("LIBRARY_PATH")) if part)
    return {
        **os.environ,
        **offline,
        **image,
        "LIBRARY_PATH": libraries,  # where Triton looks for the driver when it compiles
        "PYTHONPATH": os.pathsep.join(part for part in parts if part),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def kill_session(session: int) -> None:
    """Kill the process that leads the session and all its descendants, whatever their process groups."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()  # state, parent, group, session, …
            if int(fields[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (OSError, IndexError):  # ended meanwhile
            continue
    with contextlib.suppress(ProcessLookupError):  # without /proc
        os.killpg(session, signal.SIGKILL)


def run_process(command: list[str], folder: Path, variables: dict[str, str], deadline: float) -> int | None:
    """Exit code of a command; None where it was killed at the deadline. Prints its log and the time left as it runs."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **how)
    ended, late = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(min(TICK_SECONDS, max(deadline - time.time(), 0))):
            left = deadline - time.time()
            if left <= 0:
                late.set()
                return kill_session(process.pid)
            print(f"{left / 60:.0f} min left", flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
        returned = process.wait()
    except BaseException:  # an interrupt: leave no process behind
        kill_session(process.pid)
        raise
    finally:
        ended.set()
        watcher.join()
    return None if late.is_set() else returned


def find_limit(code: Path) -> float:
    """Seconds of this session: KAGGLE_LLM_LIMIT, else the hours of the bundle's competition, less a spare."""
    hours = read_manifest(code).get("hours", USUAL_HOURS)
    return float(os.environ.get("KAGGLE_LLM_LIMIT") or max(hours * 3600 - SPARE_SECONDS, 0))


def main(code: Path, root: Path) -> None:
    """Run the prediction of the bundle `code` with its log; kill it at the time limit.

    root: the folder of Kaggle's input/ and working/. The submission.csv of before a kill stays valid.
    Raises RuntimeError where the process fails, or is killed before it wrote a submission.
    """
    limit, start = find_limit(code), time.time()
    compare_machine(code, root)
    command, working = predict_command(code, root, start + limit), root / "working"
    site = install_wheels(code, root)
    (working / OFFERED).unlink(missing_ok=True)  # of a prediction before this one
    started = time.time()
    returned = run_process(command, working, environment(code, site), start + limit)
    if returned is None and not (working / "submission.csv").is_file():
        raise RuntimeError(f"killed at the limit of {limit:.0f} s, before any submission was written")
    if returned is None:
        print(f"killed at the limit of {limit:.0f} s: submission.csv is the last one that was written")
    elif returned and (working / OFFERED).is_file():
        print(f"WARNING: THE PREDICTION FAILED with exit code {returned}, its error is in the log above.")
        print("WARNING: submission.csv is the last one that it offered; all better answers are lost.")
    elif returned:
        raise RuntimeError(f"prediction ended with exit code {returned}: see its log above")
    else:
        write_timing(working, started - start, time.time() - started)


def write_timing(working: Path, installed: float, seconds: float) -> None:
    """installed: seconds before the prediction's process started; seconds: of that process, with its imports."""
    prediction = json.loads((working / "prediction.json").read_text(encoding="utf-8"))
    imports = max(seconds - prediction["seconds"], 0)
    timing = {"rows": prediction["rows"], "install_seconds": round(installed, 1)}
    timing |= {"load_seconds": round(prediction["load_seconds"] + imports, 1), "seconds": round(seconds, 1)}
    (working / "timing.json").write_text(json.dumps(timing), encoding="utf-8")


def show_result(working: Path) -> None:
    """Print the rows, the time, what was cut, and the first lines of submission.csv."""
    path = working / "prediction.json"
    prediction = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"ended": "early: see the log above"}
    )
    for name in ("rows", "cut", "seconds", "load_seconds", "ended"):
        if name in prediction:
            print(f"{name:14}{'nothing' if prediction[name] == {} else prediction[name]}")
    with (working / "submission.csv").open(encoding="utf-8") as file:
        for _, line in zip(range(6), file, strict=False):
            print(line[:120].rstrip())
