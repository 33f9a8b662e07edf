#!/usr/bin/env bash
# The starter model from a folder of recordings: data, training, weights.
#
#     bash experiments/starter/build.sh RECORDINGS [OUT]
#
# RECORDINGS has audio files and sources.csv in the form of recordings.csv, which lists the address of each recording.
# Needs fluidsynth, the soundfonts of render.py and the package mido; takes about 5 hours on 2 CPU cores. A second start
# goes on where the first one stopped.
set -euo pipefail
recordings=$1 out=${2:-data/starter}
here=$(dirname "$0")
train() { python -m im2wav.train paths.runs="$out/runs" run_name=starter resume=auto "$@"; }
weights() { # the averaged weights of a checkpoint, to begin another training with: CHECKPOINT FILE
    python -c 'import sys, pathlib; from im2wav.checkpoint import load, save
save(load(sys.argv[1]), pathlib.Path(sys.argv[2]))' "$1" "$2"
}

embed() { python -m im2wav.embed encoder=efficientnet_lite2 encoder.pseudo_embeddings="$here/classes.yaml" "$@"; }

python "$here/render.py" "$out/rendered"
python "$here/augment.py" "$recordings" "$out/augmented"
python "$here/manifest.py" "$out/plain.csv" "$recordings" "$out/rendered"
python "$here/manifest.py" "$out/more.csv" "$recordings" "$out/rendered" "$out/augmented"
python "$here/manifest.py" "$out/few.csv" --most 16 "$recordings" "$out/rendered"
for pairs in plain more few; do
    embed input="$out/$pairs.csv" out="$out/$pairs"
done

# codec: first without, then with the discriminator
train experiment=starter/vqvae data.root="$out/plain" model.discriminator=null trainer.max_steps=2500 \
    model.optimizer.lr=1e-3 run_name=first
weights "$out/runs/first/vqvae/last.ckpt" "$out/first.safetensors"
train experiment=starter/vqvae data.root="$out/plain" ckpt_path="$out/first.safetensors" run_name=codec
codec=$out/runs/codec/vqvae/last.ckpt
weights "$codec" "$out/codec.safetensors"
train experiment=starter/decoder data.root="$out/more" ckpt_path="$out/codec.safetensors"

# priors: on random crops and changed copies, then the low prior on the beginning of 16 recordings of each class
for pairs in more few; do
    python -m im2wav.tokenize data.root="$out/$pairs" codec="$codec" data.num_samples=32640
done
train experiment=starter/low_prior data.root="$out/more" codec="$codec" run_name=crops
weights "$out/runs/crops/low_prior/last.ckpt" "$out/low.safetensors"
train experiment=starter/low_prior_start data.root="$out/few" codec="$codec" ckpt_path="$out/low.safetensors"
train experiment=starter/up_prior data.root="$out/more" codec="$codec"

python -m im2wav.convert run="$out/runs/starter" out="$out/model" dtype=fp16
