"""`kaggle-llm fetch` through the real kaggle CLI, against a server on this machine that stands in for Kaggle."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forks
import pytest

from kaggle_llm.kaggle import client
from kaggle_llm.kaggle.client import KaggleError, find_owner, unpack_archives

RPC = "/api/v1/competitions.CompetitionApiService/DownloadDataFiles"


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


class Kaggle(BaseHTTPRequestHandler):
    """Knows one competition, `known`: the RPC redirects to its archive."""

    archive = zipped({"train.csv": "id\n1\n", "more/extra.csv": "a\n"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self.path.endswith(RPC) or b'"known"' not in body:
            self.send_response(403)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"code": 403, "message": "You must accept this competition\'s rules"}')
            return
        self.send_response(302)
        self.send_header("Location", "http://localhost/files/known.zip")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(self.archive)))
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(self.archive)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kaggle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def fetch(root: Path, name: str, port: int) -> subprocess.CompletedProcess[str]:
    proxy = f"http://127.0.0.1:{port}"
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        **{"KAGGLE_LLM_ROOT": str(root), "HOME": str(root), "KAGGLE_CONFIG_DIR": str(root), "TMPDIR": str(root)},
        **{"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "dummy"},
        **{"http_proxy": proxy, "HTTP_PROXY": proxy},
    }
    command = [forks.python(), "-m", "kaggle_llm.cli", "fetch", name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_fetch_downloads_and_unpacks_once(tmp_path: Path, port: int) -> None:
    done = fetch(tmp_path, "known", port)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "input" / "known"
    assert (folder / "train.csv").read_text() == "id\n1\n" and (folder / "more" / "extra.csv").is_file()
    assert not list(folder.glob("*.zip"))
    (folder / "train.csv").write_text("mine")
    assert fetch(tmp_path, "known", port).returncode == 0
    assert (folder / "train.csv").read_text() == "mine", "what is complete is not fetched again"


def test_a_refused_fetch_leaves_nothing_and_says_kaggles_words(tmp_path: Path, port: int) -> None:
    done = fetch(tmp_path, "unknown", port)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "kaggle competitions download" in done.stderr and "rules" in done.stderr
    assert not list((tmp_path / "input").iterdir())


def test_a_folder_of_ones_own_is_not_overwritten(tmp_path: Path, port: int) -> None:
    (tmp_path / "input" / "known").mkdir(parents=True)
    done = fetch(tmp_path, "known", port)
    assert done.returncode != 0 and "was not made by fetch" in done.stderr


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.zip").write_bytes(zipped({"../outside.txt": "x"}))
    with pytest.raises(ValueError, match="lies outside the folder"):
        unpack_archives(tmp_path / "a")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize(
    ("lines", "owner"),
    [("- username: anna\n- auth_method: x\n", "anna"), ("- username: None\n", ""), ("- path: None\n", "")],
)
def test_the_owner_is_the_user_who_is_logged_in(lines: str, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ask_kaggle", lambda *words: f"Configuration values\n{lines}")
    if owner:
        assert find_owner() == owner
        return
    with pytest.raises(KaggleError, match="names no user: log in with `kaggle auth login`"):
        find_owner()
