"""The files of `recipes/configs/`, read as `accelerate launch` reads them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def launch_arguments(name: str, *flags: str) -> Namespace:
    """What `accelerate launch --config_file` makes of a file."""
    command = ["--config_file", str(CONFIGS / name), *flags, "recipes/pretrain.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


@pytest.mark.parametrize(
    ("name", "processes", "machines", "how"),
    [
        ("cpu.yaml", 1, 1, {"use_cpu": True}),
        ("gpu.yaml", 1, 1, {"use_cpu": False}),
        ("gpu8_ddp.yaml", 8, 1, {"multi_gpu": True}),
        ("gpu8_fsdp.yaml", 8, 1, {"use_fsdp": True}),
        ("nodes2_gpu8_ddp.yaml", 16, 2, {"multi_gpu": True, "main_process_port": 29500}),
    ],
)
def test_accelerate_reads_every_file(name: str, processes: int, machines: int, how: dict[str, object]) -> None:
    arguments = launch_arguments(name)
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert {key: getattr(arguments, key) for key in how} == how
    assert f"--config_file recipes/configs/{name} " in (CONFIGS / name).read_text()
    ways = (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed, arguments.tpu)
    assert sum(map(bool, ways)) == (0 if processes == 1 else 1)


def test_there_is_no_file_that_is_not_tested() -> None:
    named = {"cpu.yaml", "gpu.yaml", "gpu8_ddp.yaml", "gpu8_fsdp.yaml", "nodes2_gpu8_ddp.yaml"}
    assert {path.name for path in CONFIGS.iterdir() if "compute_environment" in path.read_text()} == named


def test_a_machine_of_several_gets_its_rank_and_its_processes() -> None:
    flags = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    arguments = launch_arguments("nodes2_gpu8_ddp.yaml", *flags)
    prepare_multi_gpu_env(arguments)
    found = {
        name: str(getattr(arguments, name)) for name in ("nproc_per_node", "nnodes", "node_rank", "rdzv_endpoint")
    }
    assert found == {"nproc_per_node": "8", "nnodes": "2", "node_rank": "1", "rdzv_endpoint": "10.0.0.1:29500"}
