#!/usr/bin/env bash
# "Your own images" of the README on real colonoscopy frames: curate, pre-train, evaluate, report, each timed.
#
#     POOL=polypgen/images DOWNSTREAM=kvasir-seg OUT=runs/colonoscopy benchmarks/colonoscopy.sh
#
# POOL: 1,537 frames of PolypGen (Ali et al. 2023, CC BY 4.0), longest side 352 px; its masks are never read.
# DOWNSTREAM: Kvasir-SEG (Jha et al. 2020), 1,000 images of 352 px with masks, split by the prefix of the file name; two
# training images that repeat others are left out.
set -euo pipefail
: "${POOL:?folder of pool images}" "${DOWNSTREAM:?folder with images/ and masks/}"
OUT=${OUT:-runs/colonoscopy}

timed() {
    echo "+ $*"
    local start=$SECONDS
    "$@"
    echo "= $((SECONDS - start)) s"
}

timed optidel curate --dataset "$POOL" --budget 0.05 --output_dir "$OUT"
timed accelerate launch --num_processes 1 recipes/pretrain.py --dataset "$OUT/curated" --output_dir "$OUT/vit" \
    --steps 1000 --base_learning_rate 4e-3 --norm_pix_loss false
timed optidel evaluate --models optidel="$OUT/vit" none --dataset "$DOWNSTREAM" --output_dir "$OUT/evaluation" \
    --labels 100 --exclude train_0222 train_0620
timed optidel report --curation_dir "$OUT" --pretrain_dirs optidel="$OUT/vit" --results "$OUT/evaluation/results.json"
