"""
Curate a folder of images, parquet files or a Hub dataset. Without arguments: the embedded sample, into runs/curate.

    python recipes/curate.py --dataset my_images --budget 0.05 --output_dir out
    python recipes/curate.py --dataset my_images --output_dir out --sam facebook/sam-vit-base --device cuda
    torchrun --nproc_per_node 8 recipes/curate.py --dataset my_images --output_dir out
"""

from __future__ import annotations

import sys

from optidel_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["curate", *sys.argv[1:]]))
