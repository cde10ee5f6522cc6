#!/usr/bin/env bash
# Train the demo's VQ-VAE and StyleVAR on one GPU, for 3 and 5 minutes, and evaluate them.
#
#   data/demo/train.sh CORPUS OUT
#
# CORPUS is a folder of training shards, or a .tar or .tar.xz file of one. OUT gets the weights in OUT/weights, and the
# metrics and pictures of both models. These variables change the recipe, for instance to try it on a CPU:
#   VAE_MINUTES (3), SFT_MINUTES (5)   minutes of training steps
#   VAE_FLAGS, SFT_FLAGS, EVAL_FLAGS   more flags, which override those below
#   PYTHON (python)
set -euo pipefail

[ $# = 2 ] || { echo "usage: $0 CORPUS OUT" >&2; exit 2; }
corpus=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python}
mkdir -p "$out/weights"

if [ -f "$corpus" ]; then
    mkdir -p "$out/corpus"
    tar -xf "$corpus" -C "$out/corpus"
    corpus=$out/corpus
fi

# shellcheck disable=SC2086  # the variables hold lists of flags
$python launch/train_vqvae.py --shards "$corpus" --heldout 'data/demo/heldout-*.tar' --out "$out/vqvae" \
    --minutes "${VAE_MINUTES:-3}" --steps 100000 --batch 256 --lr 1e-3 --precision bf16 --compile --tf32 --half \
    --eval-every 1000 ${VAE_FLAGS:-}

# shellcheck disable=SC2086
$python launch/sft.py --shards "$corpus" --val-shards 'data/demo/heldout-*.tar' --vae "$out/vqvae/vqvae.safetensors" \
    --runs "$out" --name sft --resume auto --minutes "${SFT_MINUTES:-5}" --steps 100000 --batch 512 --micro-batch 512 \
    --patch-nums 1 2 4 6 8 10 --V 2048 --Cvae 32 --depth 6 --shared-aln --train-bn --flip --no-augment \
    --self-forced 0.5 --self-forced-rate 1 --self-forced-temperature 0.5 --export last \
    --memory-gb 16 --ema 0.998 --alpha-jitter 0.1 --lr 2e-3 --schedule cosine --precision bf16 --compile --half \
    --eval-every 200 --checkpoint-every 1000 ${SFT_FLAGS:-}

cp "$out/vqvae/vqvae.safetensors" "$out"/sft/model/{config.json,model.safetensors} "$out/weights"

# shellcheck disable=SC2086
$python launch/eval.py --methods stylevar="$out/weights" copy color-transfer adain --vae "$out/weights/vqvae.safetensors" \
    --sweep-temperature 1 0.7 0.5 0.4 --out "$out/eval" ${EVAL_FLAGS:-}
