"""Plant small faults in the package, one at a time, and count how many the fast tests notice.

    python tests/faults.py --count 40 --seed 0 --json faults.json       draw them, and say what came of each
    python tests/faults.py --again faults.json --json after.json        the same ones, in today's code

A fault is a comparison turned around, a number moved, True for False, `not` dropped, + for −, and for or: anywhere but
in the generators of the demo. Each is planted in a copy of the last commit; the test files run that are nearest to the
module by their imports, until a test fails or --seconds are over. So the share that is noticed is a lower bound. A test
that fails without a fault as well is named.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

import forks

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("src") / "kaggle_llm"
OPPOSITE = {
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And},
}
FAR = 9  # imports between a test file and a module that it does not reach


@dataclass
class Fault:
    path: str
    line: str
    """The source line that it begins in, without its indent."""
    before: str
    after: str
    noticed_by: str = ""
    """The test that failed; "" where none did, "fails anyway: …" for one that does without it."""
    seconds: float = 0.0

    def plant(self, text: str) -> str:
        """The module with this fault. Raises ValueError where the module no longer has the place."""
        for fault, start, end in find_places(self.path, text):
            if (fault.line, fault.before, fault.after) == (self.line, self.before, self.after):
                raw = text.encode()
                return (raw[:start] + self.after.encode() + raw[end:]).decode()
        raise ValueError(f"{self.path} has no line {self.line!r} any more")


def find_places(path: str, text: str) -> Iterator[tuple[Fault, int, int]]:
    """Every fault that fits into a module, with the bytes that it takes the place of."""
    lines = text.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    for node in walk(ast.parse(text)):
        changed = change(node)
        if changed is not None and node.end_lineno and node.end_col_offset is not None:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            before = text.encode()[start:end].decode()
            line = lines[node.lineno - 1].decode().strip()
            yield Fault(path, line, before, f"({ast.unparse(changed)})"), start, end


def walk(node: ast.AST) -> Iterator[ast.expr]:
    """Expressions that compute: no annotation, no f-string (their places are not known), no `if TYPE_CHECKING`."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.JoinedStr) or name in ("annotation", "returns") or not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from walk(child)


def change(node: ast.expr) -> ast.expr | None:
    """The expression with its fault; None where it has none to offer."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) if type(op) in OPPOSITE:
            new.ops = [OPPOSITE[type(op)]()]
        case ast.BinOp(right=ast.Constant(value=str())) | ast.BinOp(right=ast.JoinedStr()):
            return None  # a path or a text: any test would see it
        case ast.BinOp() | ast.BoolOp() if type(new.op) in OPPOSITE:
            new.op = OPPOSITE[type(new.op)]()
        case ast.UnaryOp(op=ast.Not()):
            return new.operand
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int() | float()):
            new.value = new.value + 1 if isinstance(new.value, int) else new.value * 1.5 or 1.0
        case _:
            return None
    return new


def draw_faults(rooms: list[str], count: int, seed: int) -> list[Fault]:
    """Places drawn with equal chance; at most one a source line."""
    paths = [path for path in sorted((ROOT / SOURCE).rglob("*.py")) if room_of(path) in (rooms or {room_of(path)})]
    names = [str(path.relative_to(ROOT)) for path in paths]
    places = [
        fault for name, path in zip(names, paths, strict=True) for fault, *_ in find_places(name, path.read_text())
    ]
    random.Random(seed).shuffle(places)
    drawn = {(fault.path, fault.line): fault for fault in reversed(places)}
    return [fault for fault in places if drawn[fault.path, fault.line] is fault][:count]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / SOURCE).parts[0].removesuffix(".py")


# which tests reach a module ----------------------------------------------------------------------------------------


def imported(text: str) -> set[str]:
    """Modules that a file may import, also inside functions, strings of code included."""
    found = set(re.findall(r"from (kaggle_llm[\w.]*) import", text)) | set(
        re.findall(r"import (kaggle_llm[\w.]*)", text)
    )
    found |= set(re.findall(r"[\"'](kaggle_llm\.[\w.]+)[\"']", text))  # python -m …
    for package, names in re.findall(r"from (kaggle_llm[\w.]*) import ([\w, ]+)", text):
        found |= {f"{package}.{name.strip()}" for name in names.split(",")}
    return found


def order_tests(path: Path, root: Path) -> list[str]:
    """Test files from the nearest to the module on: its own name first, then by the length of the way of imports.

    Of equally near ones first those that run no experiment, then those that say the module's names most often.
    """
    module = name_module(path.relative_to(root / "src"))
    graph, tests = read_graph(root)
    away = {name: count_steps(module, start, graph) for name, start in tests.items()}
    defined = [
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    said = re.compile(rf"\b(?:{'|'.join(defined)})\b")

    def distance(name: str) -> tuple[bool, int, bool, int, str]:
        mentions = len(said.findall((root / name).read_text())) if defined else 0
        own = name == f"tests/test_{path.stem}.py"
        return not own, away[name], "experiments" in tests[name], -mentions, name

    return sorted((name for name in tests if away[name] < FAR), key=distance)


def name_module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def count_steps(module: str, start: set[str], graph: dict[str, set[str]]) -> int:
    reached, seen = set(start), set(start)
    for steps in range(FAR):
        if module in reached:
            return steps
        reached = {after for name in reached for after in graph.get(name, set())} - seen
        seen |= reached
    return FAR


def read_graph(root: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Imports of every module, and of every test file; what runs experiments as processes imports them and the CLI."""
    graph = {}
    for path in (root / SOURCE).rglob("*.py"):
        graph[name_module(path.relative_to(root / "src"))] = imported(path.read_text())
    graph["kaggle_llm.competition.competition"] |= {
        name for name in graph if name.startswith("kaggle_llm.competition.")
    }
    graph["experiments"] = {"kaggle_llm.cli", *imported("".join(p.read_text() for p in root.glob("exp/*/*.py")))}
    tests = {}
    for path in root.glob("tests/test_*.py"):
        text = path.read_text()
        processes = {"experiments"} if re.search(r"\b(Workspace|light|trained)\b", text) else set()
        tests[f"tests/{path.name}"] = imported(text) | processes
    return graph, tests


# copies of the repository ------------------------------------------------------------------------------------------


def copy_repository(folder: Path) -> Path:
    """The last commit with an environment of its own, in which kaggle_llm is the copy's."""
    folder.mkdir()
    packed = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (site,) = (folder / ".venv").glob("lib/python*/site-packages")
    (installed,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "copy.pth").write_text(f"{folder / 'src'}\n{installed}\n")
    for program in (Path(sys.prefix) / "bin").iterdir():
        if not (folder / ".venv" / "bin" / program.name).exists():
            (folder / ".venv" / "bin" / program.name).symlink_to(program)
    for models in (ROOT / "input").glob("models"):
        (folder / "input" / "models").symlink_to(models)
    # Tests start as forks of one process of the copy that has the libraries loaded.
    (folder / "forks").mkdir()
    forks.write_program(folder / "forks" / "python", folder / ".venv" / "bin" / "python", folder / "tests" / "forks.py")
    return folder


def run_tests(folder: Path, names: list[str], seconds: float) -> str:
    """The first test that fails; "" where none does before the time is over."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it would hide the copy
    inherited |= {forks.FOLDER: str(folder / "forks"), forks.OWNER: str(os.getpid())}
    command = [folder / "forks" / "python", "-m", "pytest", "-x", "-m", "not slow", "--tb=no", "-rfE", *names]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=inherited, stdout=said, stderr=said)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return ""
        said.seek(0)
        failed = re.findall(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?= - |$)", said.read(), re.M)
    return failed[0] if failed else "" if process.returncode == 0 else f"pytest's exit code {process.returncode}"


def try_fault(fault: Fault, folder: Path, seconds: float) -> None:
    path = folder / fault.path
    text = path.read_text()
    names, start = order_tests(path, folder), time.monotonic()
    path.write_text(fault.plant(text))
    try:
        fault.noticed_by = run_tests(folder, names, seconds)
    finally:
        path.write_text(text)
    fault.seconds = round(time.monotonic() - start, 1)


def write_faults(faults: list[Fault], path: Path | None) -> None:
    """After every fault, so that a run that is ended leaves those that it tried."""
    if path:
        path.write_text(json.dumps([asdict(fault) for fault in faults], indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default="", help="only these, as competition,inference,weights")
    parser.add_argument("--seconds", type=float, default=150.0, help="of tests for each fault")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", type=Path, help="a --json of before: the same faults")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.again:
        faults = [Fault(**{**entry, "noticed_by": "", "seconds": 0.0}) for entry in json.loads(given.again.read_text())]
    else:
        faults = draw_faults([name for name in given.rooms.split(",") if name], given.count, given.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, ThreadPoolExecutor(given.jobs) as pool:
        copies: Queue[Path] = Queue()
        tried: list[Fault] = []
        for number in range(given.jobs):
            copies.put(copy_repository(Path(scratch) / str(number)))

        def try_next(fault: Fault) -> None:
            folder = copies.get()
            try_fault(fault, folder, given.seconds)
            copies.put(folder)
            print(
                f"{fault.seconds:5.0f} s  {fault.path}: {fault.before} → {fault.after}  {fault.noticed_by or 'MISSED'}",
                flush=True,
            )
            tried.append(fault)
            write_faults(tried, given.json)

        list(pool.map(try_next, faults))
        folder = copies.get()
        for test in sorted({fault.noticed_by for fault in faults if "::" in fault.noticed_by}):
            if run_tests(folder, [test], 300):
                for fault in faults:
                    fault.noticed_by = f"fails anyway: {test}" if fault.noticed_by == test else fault.noticed_by
        shutil.rmtree(folder)
    write_faults(faults, given.json)
    noticed = [fault for fault in faults if fault.noticed_by and not fault.noticed_by.startswith("fails anyway")]
    for fault in faults:
        if fault not in noticed:
            print(f"missed: {fault.path}: {fault.line}\n        {fault.before} → {fault.after}  {fault.noticed_by}")
    print(f"{len(noticed)} of {len(faults)} noticed, {len(noticed) / max(len(faults), 1):.0%}")


if __name__ == "__main__":
    main()
