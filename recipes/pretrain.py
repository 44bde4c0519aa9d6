"""
Pre-train a ViT on curated images. Without arguments: a small one on the embedded sample's curated subset.

    accelerate launch recipes/pretrain.py --dataset out/curated --output_dir out/vit --steps 2000
    accelerate launch --num_processes 8 recipes/pretrain.py --dataset out/curated --model facebook/vit-mae-base
    torchrun --nproc_per_node 2 recipes/pretrain.py --dataset out/curated --device cpu
"""

from __future__ import annotations

import sys

from optidel_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
