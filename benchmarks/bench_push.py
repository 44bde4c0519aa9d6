"""What a push costs in memory as the dataset grows, against `Dataset.push_to_hub`, to a Hub on localhost.

    python benchmarks/bench_push.py                         # 64, 256 and 1,024 MB
    python benchmarks/bench_push.py --megabytes 32 64

Each push runs in a process of its own, so that its peak memory is its own; the server's is in this one. Both ways push
the same parquet shards of 16 MB. Writes `benchmarks/push_cpu_[date].md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


# The server is the tests' own.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hub_server import HubServer


SHARD_MB, ROW_KB = 16, 64
CARD = b"---\ntags:\n- optidel\n---\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--push", nargs=2, metavar=("HOW", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.push:
        print("\n" + json.dumps(push(*arguments.push)))
        return
    rows = [row for megabytes in arguments.megabytes for row in measure(megabytes)]
    today = datetime.date.today().isoformat()
    Path(__file__).with_name(f"push_cpu_{today}.md").write_text(report(rows, today), encoding="utf-8")


def measure(megabytes: int) -> list[str]:
    """One size, pushed both ways, and ours again when everything is there."""
    lines = []
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        write_shards(Path(folder), megabytes // SHARD_MB)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": f"{folder}/home"}
        for how in ("optidel", "optidel", "datasets"):
            again, sent = "optidel" if how == "optidel" and lines else "", len(hub.uploads)
            command = [sys.executable, __file__, "--push", how, folder]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            title = f"{how}{', again' if again else ''}"
            uploads = len(hub.uploads) - sent
            lines.append(f"| {megabytes:,} | {title} | {figures['peak']:.0f} | {figures['seconds']:.1f} | {uploads} |")
            print(lines[-1])
            if how == "optidel" and again:
                hub.clear()
    return lines


def push(how: str, folder: str) -> dict[str, float]:
    """Push in this process: seconds, and megabytes of resident memory over what the imports take."""
    from datasets import load_dataset

    from optidel_hf.publishing.transfer import push_files

    paths = sorted(Path(folder).glob("*.parquet"))
    table = load_dataset("parquet", data_files=list(map(str, paths)), split="train") if how == "datasets" else None
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of what came before
    before, began = _status("VmRSS"), time.perf_counter()
    if table is None:
        push_files("me/x", "dataset", {**{f"curated/{p.name}": p for p in paths}, "README.md": CARD}, private=True)
    else:
        table.push_to_hub("me/x", private=True, max_shard_size=f"{SHARD_MB}MB")
    return {"peak": (_status("VmHWM") - before) / 1024, "seconds": time.perf_counter() - began}


def _status(name: str) -> int:
    """A figure of this process's memory, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def write_shards(folder: Path, count: int) -> None:
    """Parquet shards of random bytes, as incompressible as images."""
    rng = np.random.default_rng(0)
    for number in range(count):
        rows = [rng.bytes(ROW_KB * 1024) for _ in range(SHARD_MB * 1024 // ROW_KB)]
        pq.write_table(pa.table({"image": rows}), folder / f"shard-{number:05d}-of-{count:05d}.parquet")


def report(rows: list[str], today: str) -> str:
    """The results as Markdown."""
    names = ("optidel_hf", "huggingface_hub", "datasets", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    head = [
        f"# Memory of a push, {today}",
        "",
        f"`python benchmarks/bench_push.py`, {platform.machine()}, {os.cpu_count()} cores, {versions}. Plain LFS to a "
        "Hub on localhost: the seconds are no network's. Resident memory counts the pages of `datasets`' mapped table "
        "that are read, too.",
        "",
        "| MB | way | peak memory over the imports, MB | s | files sent |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    main()
