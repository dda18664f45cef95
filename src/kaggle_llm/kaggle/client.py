"""The `kaggle` CLI as a process: it authenticates when imported, and what arrived counts, not its exit code."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from kaggle_llm import paths

MARK = ".fetched"  # written last into a competition folder


def run_kaggle(*words: str) -> str:
    """Output of `kaggle WORDS`; raises OSError with the CLI's own words where it fails."""
    program = Path(sys.executable).with_name("kaggle")
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode:
        raise OSError(f"kaggle {' '.join(words)} failed: {said[-1000:] or f'exit code {done.returncode}'}")
    return said


def fetch_competition(name: str) -> Path:
    """Download and unpack a competition's data into input/<name>/; complete or absent."""
    folder = paths.root() / "input" / name
    if (folder / MARK).is_file():
        return folder
    if folder.exists():
        raise FileExistsError(f"{paths.relative(folder)} exists and was not made by fetch: move it away first")
    download = folder.with_name(f".{name}.fetching")
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        said = run_kaggle("competitions", "download", "-c", name, "-p", str(download))
        unpack_archives(download)
        if not any(download.iterdir()):
            raise OSError(f"nothing arrived for {name}; have you accepted the competition's rules? kaggle said: {said}")
        (download / MARK).touch()
        download.rename(folder)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return folder


def unpack_archives(folder: Path) -> None:
    """Unpack every .zip in place and drop it; a member that would leave the folder is refused."""
    for archive in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                if not (folder / member).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{archive.name} has the member {member!r}, which lies outside the folder")
            file.extractall(folder)
        archive.unlink()
