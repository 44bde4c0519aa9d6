"""
Write a pool whose redundancy and junk are known, to judge a selection on. Without arguments: 600 generated frames.

    python recipes/testbed.py --frames 20000 --redundancy 20 --junk 0.2 --output_dir runs/redundant
    python recipes/testbed.py --images polypgen/images --frames 15000 --output_dir runs/polypgen-semi-synthetic
    python recipes/curate.py --dataset runs/redundant/synthetic-pool/images --output_dir out
"""

from __future__ import annotations

import sys

from optidel_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["testbed", *sys.argv[1:]]))
