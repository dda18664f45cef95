"""Python in forks of one process that has the libraries loaded: a program starts in 0.1 s instead of 5 to 15.

`python()` is a program that does what `python WORDS…` does (a script, -m module, -c code) in such a fork, with the
caller's environment, folder and open files. The fork dies with its caller, and the program ends as the fork did.
Its first call starts the server, which ends with the test session. kaggle_llm is loaded beforehand too, and dropped
where the program's path has another one, or where it was changed since.

Not for tests of the process itself: what the interpreter or a library reads when it starts, signals to a group, limits
and namespaces of the caller, memory of a process tree.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

FOLDER = "KAGGLE_LLM_FORKS"  # the variable with the folder of the program, the server's socket and its log
OWNER = "KAGGLE_LLM_FORKS_OWNER"  # the variable with the process that the server ends with
LIBRARIES = """
polars omegaconf yaml safetensors.torch torch transformers transformers.trainer transformers.models.auto.modeling_auto
transformers.models.llama.modeling_llama transformers.models.bert.modeling_bert transformers.models.gpt2.modeling_gpt2
peft sentence_transformers bm25s sklearn.metrics sklearn.model_selection scipy.stats datasketch nbformat jupytext
psutil typer pydantic.fields pydantic.type_adapter pydantic.types rich.table matplotlib.backends.backend_agg
torch.distributed.checkpoint.state_dict sqlite3
"""
PACKAGE = "kaggle_llm"
LOADED: dict[str, int] = {}  # the server's files of it, and when they were changed
LOOK = 0.01  # seconds between two looks at a program


def open_session() -> None:
    """Called by the process of the test session that ends last, before pytest-xdist starts others."""
    import tempfile

    os.environ |= {FOLDER: tempfile.mkdtemp(prefix="forks-"), OWNER: str(os.getpid())}
    write_program(python(), sys.executable, os.path.abspath(__file__))


def write_program(
    path: str | os.PathLike[str], executable: str | os.PathLike[str], file: str | os.PathLike[str]
) -> None:
    """executable, file: of the Python that is forked, and this module as it sees it."""
    with open(path, "w") as script:
        script.write(f'#!/bin/sh\nexec "{executable}" -I -S "{file}" "$@"\n')
    os.chmod(path, 0o755)


def python() -> str:
    """The program that takes the place of sys.executable."""
    return os.path.join(os.environ[FOLDER], "python")


def socket_path() -> str:
    return os.path.join(os.environ[FOLDER], "socket")


# the caller's side: standard library only, for it is started without site-packages ---------------------------------


def ask(words: list[str]) -> int:
    """Exit code of the program; negative where a signal ended it."""
    import json

    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "files": open_files()}
    text = json.dumps(request).encode()
    with connect() as connection:
        socket.send_fds(connection, [len(text).to_bytes(4, "big")], request["files"])
        connection.sendall(text)
        for passed_on in (signal.SIGINT, signal.SIGTERM):
            signal.signal(passed_on, lambda number, _: connection.sendall(bytes([number])))
        code = connection.recv(16)
    if not code:
        raise ConnectionError(f"the server ended: see log.txt in {os.environ[FOLDER]}")
    return int(code)


def open_files() -> list[int]:
    """The standard streams, and what the caller handed down beside them."""
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
            found.append(int(name))
        except OSError:  # the listing's own
            pass
    return found


def connect() -> socket.socket:
    """To the server, started where this is the first call of a session."""
    import time

    start_server()
    connection = socket.socket(socket.AF_UNIX)
    for _ in range(1000):
        try:
            connection.connect(socket_path())
            return connection
        except (FileNotFoundError, ConnectionRefusedError):  # its socket is not there yet
            time.sleep(LOOK)
    raise ConnectionError(f"no server in {os.environ[FOLDER]}: see log.txt there")


def start_server() -> None:
    log = os.path.join(os.environ[FOLDER], "log.txt")
    if os.path.exists(log):
        return
    import subprocess

    try:
        with open(log, "xb") as said:
            command = [sys.executable, os.path.abspath(__file__), "--serve"]
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    except FileExistsError:  # by another caller, just now
        pass


# the server --------------------------------------------------------------------------------------------------------


def serve() -> dict:
    """Fork for every client while the test session lives. Returns only in a fork: what it has to run."""
    import select
    import shutil

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path())
    listener.listen(16)
    load_libraries()
    running: dict[int, socket.socket] = {}  # a program → its client
    while is_alive(int(os.environ[OWNER])):
        ready, _, _ = select.select([listener, *running.values()], [], [], LOOK if running else 2.0)
        if listener in ready:
            connection, _ = listener.accept()
            try:
                request, descriptors = receive(connection)
            except (OSError, ValueError):  # it went before it had asked
                connection.close()
                continue
            program = os.fork()  # one fork a program: the page tables of all libraries are copied in it
            if program == 0:
                for other in (listener, connection, *running.values()):
                    other.close()
                os.setsid()  # a worker ends its own group when it ends
                take_files(descriptors, request["files"])
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            running[program] = connection
        for program, connection in list(running.items()):
            if connection in ready and not pass_on(connection, program):
                running.pop(program).close()
                os.waitpid(program, 0)
        tell_ends(running)
    for program in running:
        end_group(program)
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
    sys.exit(0)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """What a client asks for, and its open files."""
    import json

    connection.settimeout(60.0)
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 200)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        part = connection.recv(1 << 20)
        if not part:
            raise ConnectionError("the client is gone")
        text += part
    return json.loads(text), descriptors


def pass_on(connection: socket.socket, program: int) -> bool:
    """A signal of the client to its program; where the client is gone, so is the program, and this is False."""
    number = connection.recv(1)
    if number:
        os.kill(program, number[0])
    else:
        end_group(program)
    return bool(number)


def end_group(program: int) -> None:
    try:
        os.killpg(program, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet
        os.kill(program, signal.SIGKILL)


def tell_ends(running: dict[int, socket.socket]) -> None:
    """Collect the programs that have ended, and tell their clients how."""
    while True:
        try:
            program, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # there is none
            return
        if not program:
            return
        connection = running.pop(program, None)
        if connection:
            with contextlib.suppress(BrokenPipeError):  # the client may just have gone
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def load_libraries() -> None:
    """Import only: a library that has computed may have threads, which a fork would lose. A picture needs none."""
    import gc
    import importlib
    import io
    import pkgutil

    for name in LIBRARIES.split():
        importlib.import_module(name)
    source = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
    sys.path.insert(0, source)  # whatever the path of the first program is
    package = importlib.import_module(PACKAGE)
    sys.path.remove(source)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        importlib.import_module(module.name)
    LOADED.update(list_times())
    figure = importlib.import_module("matplotlib.figure").Figure()
    figure.subplots().set(yscale="log", title="fonts, and the patterns of its texts, are read once")
    figure.savefig(io.BytesIO())
    end_quickly()
    gc.collect()
    gc.freeze()


def end_quickly() -> None:
    """Every program would take 60 ms to delete torch's operators and to add up what was compiled."""
    import atexit
    import weakref

    atexit.unregister(sys.modules["torch._dynamo.utils"].dump_compile_times)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def list_times() -> dict[str, int]:
    """Files of the package that are loaded, and when they were changed; 0: gone."""
    files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE]
    return {file: os.stat(file).st_mtime_ns if os.path.exists(file) else 0 for file in files if file}


def drop_other_package() -> None:
    """Forget the server's kaggle_llm where the program's path has another one, or none, or where it was changed."""
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(PACKAGE, sys.path)
    if spec is None or spec.origin != sys.modules[PACKAGE].__file__ or list_times() != LOADED:
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def take_files(descriptors: list[int], numbers: list[int]) -> None:
    """Give the received files the numbers that they have in the caller."""
    import fcntl

    above = 1 + max(*descriptors, *numbers)
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def run(request: dict) -> None:
    """What the interpreter does with its command line. Does not return, nor take a second to clear up as it would."""
    import atexit
    import threading

    code = 1
    try:
        start_program(request)
        code = 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_program(request: dict) -> None:
    import random
    import runpy
    import tempfile
    import types
    import warnings

    words, environment = request["words"], request["environment"]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    installed = [path for path in sys.path[1:] if path not in inherited]
    tempfile.tempdir = None
    random.seed()
    if words[0] == "-u":  # pytest-xdist starts its workers so
        words = words[1:]
    if words[0] in ("-c", "-m"):
        sys.argv = [words[0], *words[2:]]
        sys.path[:] = ["" if words[0] == "-c" else os.getcwd(), *given, *installed]
    else:
        sys.argv = words
        sys.path[:] = [os.path.dirname(os.path.abspath(words[0])), *given, *installed]
    drop_other_package()
    if words[0] == "-m":
        warnings.filterwarnings("ignore", message=".* prior to execution of")  # of what is loaded already
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        run(serve())
    else:
        code = ask(sys.argv[1:])
        if code < 0:
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        sys.exit(code)
