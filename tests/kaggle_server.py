"""A stand-in for Kaggle's server: datasets, kernels and submissions in memory, spoken to by the real kaggle CLI.

Reached with KAGGLE_API_ENVIRONMENT=LOCALHOST and http_proxy (see `environment`). It does what the CLI's own source and
observed answers say; what the real server does beyond them is unknown here. A fault is bound to one call of a method.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OWNER = "alice"
STALL = 3.0  # seconds
STATUSES = {"429": 429, "500": 500, "503": 503, "504": 504, "401": 401, "400": 400}
Files = dict[str, bytes]


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the `call`-th call (from 1) of `method`, or of "PUT" or "GET".

    Kinds: an HTTP status; drop (the connection, before anything is done), lost (the answer, after it was done), stall
    (no answer for STALL seconds); for a
    PUT refuse (403) and vanish (said to have arrived); for a dataset exists, unready, never-ready, failed; for a kernel
    push-error, no-source, fails.
    """

    method: str
    call: int
    kind: str


@dataclass
class Dataset:
    versions: list[Files] = field(default_factory=list)
    looks: int = 0
    """How often it is still said to be under way."""
    status: str = "READY"


@dataclass
class Kernel:
    request: dict[str, Any]
    status: str = "QUEUED"
    failure: str = ""
    output: Files = field(default_factory=dict)
    log: str = ""


Execute = Callable[["Kaggle", Kernel], None]


def leave_nothing(_: Kaggle, kernel: Kernel) -> None:
    kernel.status = "COMPLETE"


@dataclass
class Kaggle:
    """The server's state. execute: what running a kernel does: it sets status, output and log."""

    faults: tuple[Fault, ...] = ()
    execute: Execute = leave_nothing
    allowed: int = 5
    """Submissions that are left today."""
    score: str = "0.5"
    datasets: dict[str, Dataset] = field(default_factory=dict)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, tuple[str, bytes | None]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    received: int = 0
    """Bytes of uploaded files."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, method: str) -> str:
        """The kind of fault of this call of the method, or ""."""
        self.calls[method] += 1
        kinds = [fault.kind for fault in self.faults if (fault.method, fault.call) == (method, self.calls[method])]
        return kinds[0] if kinds else ""

    # the methods, each from request to (status, answer) --------------------------------------------------------

    def GetDatasetStatus(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        dataset = self.datasets.get(f"{request['ownerSlug']}/{request['datasetSlug']}")
        if dataset is None:
            return 404, {"code": 404, "message": "404 Not Found"}
        dataset.looks -= 1
        return 200, {"status": "BLOBS_RECEIVED" if dataset.looks >= 0 else dataset.status}

    def GetDataset(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        ref = f"{request['ownerSlug']}/{request['datasetSlug']}"
        if ref not in self.datasets:
            return 404, {"code": 404, "message": "404 Not Found"}
        return 200, {"ref": ref, "currentVersionNumber": len(self.datasets[ref].versions)}

    def StartBlobUpload(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        token = f"token-{len(self.blobs)}"
        self.blobs[token] = (request["name"], None)
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def CreateDataset(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        ref = f"{request.get('ownerSlug', OWNER)}/{request['slug']}"
        if ref in self.datasets or kind == "exists":
            return 200, {"status": "error", "error": "The requested title is already in use by a dataset."}
        return self._add_version(ref, request["files"], kind)

    def CreateDatasetVersion(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        ref = f"{request['ownerSlug']}/{request['datasetSlug']}"
        if ref not in self.datasets:
            return 404, {"code": 404, "message": "404 Not Found"}
        return self._add_version(ref, request["body"]["files"], kind)

    def _add_version(self, ref: str, tokens: list[dict[str, str]], kind: str) -> tuple[int, dict[str, Any]]:
        files: Files = {}
        for entry in tokens:
            name, content = self.blobs[entry["token"]]
            if content is not None:
                files |= unpack(name, content)
        dataset = self.datasets.setdefault(ref, Dataset())
        dataset.versions.append(files)
        dataset.looks = {"unready": 3, "never-ready": 10**9}.get(kind, 0)
        dataset.status = "FAILED" if kind == "failed" else "READY"
        return 200, {"ref": ref, "url": f"https://example.org/{ref}", "status": "ok"}

    def ListDatasetFiles(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        files = self.datasets[f"{request['ownerSlug']}/{request['datasetSlug']}"].versions[-1]
        start, size = int(request.get("pageToken") or 0), int(request.get("pageSize") or 20)
        page = sorted(files)[start : start + size]
        answer: dict[str, Any] = {
            "datasetFiles": [
                {"name": name, "totalBytes": len(files[name]), "creationDate": "2026-11-25T00:00:00Z"} for name in page
            ]
        }
        return 200, answer | ({"nextPageToken": str(start + size)} if start + size < len(files) else {})

    def SaveKernel(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        ref = request["slug"]
        if kind == "push-error":
            return 200, {"error": "Maximum batch GPU session count of 2 reached."}
        unknown = [name for name in request.get("datasetDataSources", []) if name not in self.datasets]
        if kind == "no-source" or unknown:
            request = {**request, "datasetDataSources": [], "modelDataSources": []}
        kernel = Kernel(request)
        self.kernels.setdefault(ref, []).append(kernel)
        if kind == "fails":
            kernel.status, kernel.failure, kernel.log = "ERROR", "Exit code 1", "a cell failed\nRuntimeError: no GPU\n"
        else:
            self.execute(self, kernel)
        answer = {"ref": ref, "url": f"https://example.org/{ref}", "versionNumber": len(self.kernels[ref])}
        return 200, answer | ({"invalidDatasetSources": unknown} if unknown else {})

    def GetKernel(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        slug, _, version = request["kernelSlug"].partition("/")
        ref = f"{request['userName']}/{slug}"
        versions = self.kernels.get(ref, [])
        if not versions or (version and int(version) > len(versions)):
            return 404, {"code": 404, "message": "404 Not Found"}
        saved = versions[int(version or len(versions)) - 1].request
        metadata = {
            "id": 1,
            "ref": ref,
            "title": saved["newTitle"],
            "language": saved["language"],
            "kernelType": saved["kernelType"],
            "isPrivate": saved.get("isPrivate", False),
            "enableGpu": saved.get("enableGpu", False),
            "enableInternet": saved.get("enableInternet", False),
            "datasetDataSources": saved.get("datasetDataSources", []),
            "competitionDataSources": saved.get("competitionDataSources", []),
            "modelDataSources": saved.get("modelDataSources", []),
            "dockerImage": saved.get("dockerImage", ""),
            "machineShape": saved.get("machineShape", ""),
        }
        blob = {"source": saved["text"], "language": "python", "kernelType": "notebook", "slug": slug}
        return 200, {"metadata": metadata, "blob": blob}

    def GetKernelSessionStatus(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        kernel = self._kernel(request)
        return 200, {"status": kernel.status, "failureMessage": kernel.failure}

    def ListKernelSessionOutput(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        kernel, ref = self._kernel(request), f"{request['userName']}/{request['kernelSlug']}"
        start, size = int(request.get("pageToken") or 0), int(request.get("pageSize") or 20)
        page = sorted(kernel.output)[start : start + size]
        files = [{"url": f"http://localhost/output/{ref}/{name}", "fileName": name} for name in page]
        more = {"nextPageToken": str(start + size)} if start + size < len(kernel.output) else {}
        return 200, {"files": files, "log": kernel.log, **more}

    def _kernel(self, request: dict[str, Any]) -> Kernel:
        return self.kernels[f"{request['userName']}/{request['kernelSlug']}"][-1]

    def CreateCodeSubmission(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        if self.allowed < 1:
            return 400, {"code": 400, "message": "You have reached the limit of submissions for today"}
        self.allowed -= 1
        ref = 1000 + len(self.submissions)
        kept = ("competitionName", "kernelOwner", "kernelSlug", "kernelVersion", "fileName")
        self.submissions.append(
            {
                "ref": ref,
                "description": request.get("submissionDescription", ""),
                "date": "2026-11-25T00:00:00Z",
                "status": "PENDING",
                "request": {name: request.get(name) for name in kept},
                "looks": 2,
            }
        )
        return 200, {"message": "Successfully submitted to the competition", "ref": ref}

    def GetSubmissionLimits(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        made = len(self.submissions)
        return 200, {"numToday": made, "numTotal": made, "numAllowedNow": self.allowed}

    def ListSubmissions(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        for submission in self.submissions:
            submission["looks"] -= 1
            if submission["looks"] < 0:
                submission |= {"status": "COMPLETE", "publicScore": self.score, "privateScore": ""}
        shown = [
            {key: value for key, value in entry.items() if key not in ("looks", "request")}
            | {"fileName": entry["request"]["fileName"]}
            for entry in reversed(self.submissions)
        ]
        return 200, {"submissions": shown}

    def IntrospectToken(self, request: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        return 200, {"active": True, "username": OWNER}


def unpack(name: str, content: bytes) -> Files:
    """Files of an upload: an archive `foo.tar` becomes the folder foo/."""
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            return {f"{name[:-4]}/{m.name.removeprefix('./')}": archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            return {f"{name[:-4]}/{member}": packed.read(member) for member in packed.namelist()}
    return {name: content}


class Handler(BaseHTTPRequestHandler):
    """HTTP around a Kaggle; requests come with absolute addresses, as to a proxy."""

    protocol_version = "HTTP/1.1"

    @property
    def kaggle(self) -> Kaggle:
        return self.server.kaggle  # type: ignore[attr-defined, no-any-return]

    def do_POST(self) -> None:
        body, method = self._body(), self.path.rpartition("/")[2]
        with self.kaggle.lock:
            kind = self.kaggle.fault(method)
        if kind == "stall":
            threading.Event().wait(STALL)
        with self.kaggle.lock:
            if kind == "drop":
                return self._hang_up()
            if kind in STATUSES:
                return self._answer(
                    STATUSES[kind], {"code": STATUSES[kind], "message": f"{kind} Server Error: it stumbled"}
                )
            status, answer = getattr(self.kaggle, method)(json.loads(body or b"{}"), kind)
            if kind == "lost":
                return self._hang_up()
        return self._answer(status, answer)

    def do_PUT(self) -> None:
        body, token = self._body(), self.path.rpartition("/")[2]
        with self.kaggle.lock:
            kind = self.kaggle.fault("PUT")
            if kind == "drop":
                return self._hang_up()
            if kind in STATUSES or kind == "refuse":
                return self._answer(STATUSES.get(kind, 403), {})
            name, known = self.kaggle.blobs[token]
            if self.headers.get("Content-Range", "").startswith("bytes */"):  # "how much of it do you have?"
                return self._answer(200 if known is not None else 308, {})
            self.kaggle.received += len(body)
            if kind != "vanish":
                self.kaggle.blobs[token] = (name, body)
            if kind == "lost":
                return self._hang_up()
        return self._answer(200, {})

    def do_GET(self) -> None:
        owner, slug, name = self.path.split("/output/")[1].split("/", 2)
        kind = self.kaggle.fault("GET")
        if kind == "drop":
            return self._hang_up()
        content = self.kaggle.kernels[f"{owner}/{slug}"][-1].output[name]
        return self._reply(STATUSES.get(kind, 200), "application/octet-stream", b"it stumbled" if kind else content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, answer: Mapping[str, Any]) -> None:
        self._reply(status, "application/json", json.dumps(answer).encode())

    def _reply(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(kaggle: Kaggle) -> Iterator[str]:
    """The address of a server with this state, for `environment`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.kaggle = kaggle  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(home: Path, proxy: str) -> dict[str, str]:
    """Environment variables with which the kaggle CLI talks to the server at `proxy`, as alice."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and "KAGGLE" not in key}
    own = {"HOME": str(home), "KAGGLE_CONFIG_DIR": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
    return {**kept, **own, "KAGGLE_USERNAME": OWNER, "KAGGLE_KEY": "dummy", "http_proxy": proxy, "HTTP_PROXY": proxy}
