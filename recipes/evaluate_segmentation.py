"""
Judge pre-trained models by downstream segmentation. Without arguments: runs/pretrain against no pre-training.

    python recipes/evaluate_segmentation.py --models optidel=out/vit none --dataset kvasir-seg --output_dir out/eval

The name is not `evaluate.py`: Python puts a script's folder first, and that file would hide the library of that name.
"""

from __future__ import annotations

import sys

from optidel_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
