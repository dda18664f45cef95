"""The launch configs are ones that accelerate takes, and what their page says of them."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "src" / "kaggle_llm" / "training" / "launch"
NAMES = ["ddp", "fsdp2", "zero2", "zero3"]
TRAINED, LORA_SHARE = 16, 0.006  # weight, gradient and Adam of a trained parameter in bytes; the adapter's of r = 16


def arguments(name: str) -> Namespace:
    """What `accelerate launch --config_file` makes of a config: its own parser, loader and checks."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    parsed = launch_command_parser().parse_args(["--config_file", str(LAUNCH / f"{name}.yaml"), "train.py"])
    return _validate_launch_command(parsed)[0]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # raises for an unknown key of the first level
    options = vars(launch_command_parser().parse_args(["train.py"]))
    # Deeper keys are set as attributes without a check: one that is no option of the launcher does nothing.
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= set(options)


def test_every_config_stands_on_the_page_and_every_one_on_the_page_is_there() -> None:
    linked = set(re.findall(r"\]\((\w+\.yaml)\)", (LAUNCH / "README.md").read_text()))
    assert linked == {f"{name}.yaml" for name in NAMES} == {path.name for path in LAUNCH.glob("*.yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_precision_and_accumulation_are_left_to_the_trainer(name: str) -> None:
    found = arguments(name)
    assert (found.mixed_precision, found.num_processes, found.use_cpu) == ("no", 2, False)
    assert found.gradient_accumulation_steps in (None, 1)


def test_ddp_starts_plain_processes() -> None:
    found = arguments("ddp")
    assert (found.multi_gpu, found.use_fsdp, found.use_deepspeed) == (True, False, False)


def test_fsdp2_becomes_a_plugin_that_shards_layers_and_saves_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    found = arguments("fsdp2")
    assert (found.multi_gpu, found.use_fsdp, found.use_deepspeed) == (False, True, False)
    for name, value in prepare_multi_gpu_env(found).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    # The Trainer refuses training.gradient_checkpointing beside FSDP's own.
    assert plugin.activation_checkpointing is False
    assert plugin.cpu_ram_efficient_loading is False


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero_stages_are_what_the_names_say(name: str, stage: int) -> None:
    found = arguments(name)
    assert (found.multi_gpu, found.use_fsdp, found.use_deepspeed) == (False, False, True)
    assert found.zero_stage == stage
    assert found.offload_optimizer_device == "none"
    assert found.zero3_init_flag is False


def test_zero3_gathers_whole_weights_for_saving() -> None:
    assert arguments("zero3").zero3_save_16bit_model is True


@pytest.mark.parametrize(("method", "size"), [("full", TRAINED), ("lora", 2), ("qlora", 0.55)])
def test_the_page_gives_the_bytes_a_parameter(method: str, size: float) -> None:
    (given,) = re.findall(rf"`{method}`\s([\d.]+)", (LAUNCH / "README.md").read_text())
    adapter = 0 if method == "full" else TRAINED * LORA_SHARE
    assert float(given) == pytest.approx(size + adapter, rel=0.02)
