#!/usr/bin/env bash
# The starter model from a folder of recordings: data, training, weights.
#
#     bash experiments/starter/build.sh RECORDINGS [OUT] [OPTION ...]
#
# RECORDINGS has audio files and sources.csv in the form of recordings.csv, which lists the address of each recording.
# Needs fluidsynth, the soundfonts of render.py and the package mido; takes about 6 hours on 2 CPU cores. A second start
# goes on where the first one stopped. Options are added to each training:
# trainer.max_steps=2 model.scheduler.steps=1 tries everything out.
set -euo pipefail
recordings=$1 out=${2:-data/starter} options=("${@:3}")
here=$(dirname "$0")
train() { python -m im2wav.train paths.runs="$out/runs" run_name=starter resume=auto "$@" "${options[@]}"; }
weights() { # the averaged weights of a checkpoint, to begin another training with: CHECKPOINT FILE
    python -c 'import sys, pathlib; from im2wav.checkpoint import load, save
save(load(sys.argv[1]), pathlib.Path(sys.argv[2]))' "$1" "$2"
}

embed() { python -m im2wav.embed encoder=efficientnet_lite2 encoder.pseudo_embeddings="$here/classes.yaml" "$@"; }

python "$here/render.py" "$out/rendered"
python "$here/augment.py" "$recordings" "$out/augmented"
python "$here/manifest.py" "$out/plain.csv" "$recordings" "$out/rendered"
python "$here/manifest.py" "$out/more.csv" "$recordings" "$out/rendered" "$out/augmented"
for pairs in plain more; do
    embed input="$out/$pairs.csv" out="$out/$pairs"
done
python "$here/typical.py" "$out/plain" "$out/typical.csv"
python "$here/manifest.py" "$out/few.csv" --most 16 --typical "$out/typical.csv" "$recordings" "$out/rendered"
embed input="$out/few.csv" out="$out/few"

# codec: first without, then with the discriminator
train experiment=starter/vqvae data.root="$out/plain" model.discriminator=null trainer.max_steps=2500 \
    model.optimizer.lr=1e-3 run_name=first
weights "$out/runs/first/vqvae/last.ckpt" "$out/first.safetensors"
train experiment=starter/vqvae data.root="$out/plain" ckpt_path="$out/first.safetensors" run_name=codec
codec=$out/runs/codec/vqvae/last.ckpt
weights "$codec" "$out/codec.safetensors"
train experiment=starter/decoder data.root="$out/more" ckpt_path="$out/codec.safetensors"

# priors: on random crops and changed copies, then on the beginning of 16 recordings of each class; the low prior first
# with two codebooks, then with four
tokenize() { python -m im2wav.tokenize data.root="$out/$1" codec="$2" data.num_samples=32640; }
tokenize more "$codec"
tokenize few "$codec"
train experiment=starter/low_prior data.root="$out/more" codec="$codec" run_name=crops
weights "$out/runs/crops/low_prior/last.ckpt" "$out/crops.safetensors"
train experiment=starter/low_prior_start data.root="$out/few" codec="$codec" ckpt_path="$out/crops.safetensors" \
    run_name=start
weights "$out/runs/start/low_prior/last.ckpt" "$out/start.safetensors"
weights "$out/runs/starter/vqvae/last.ckpt" "$out/decoder.safetensors"
python "$here/widen.py" "$out/decoder.safetensors" "$out/start.safetensors" 4 "$out/wide"
rm -rf "$out/few/codes"    # of two low codebooks
tokenize few "$out/wide/codec.safetensors"
for prior in low_prior_four up_prior; do
    begin=$([ $prior = up_prior ] || echo "ckpt_path=$out/wide/low.safetensors")
    train experiment=starter/$prior data.root="$out/few" codec="$out/wide/codec.safetensors" $begin run_name=final
done

# the decoder once more, on what the priors generate
train experiment=starter/decoder data.root="$out/few" data.crop=start sizes.low_codebooks=4 model.net.noise_bands=12 \
    ckpt_path="$out/wide/codec.safetensors" trainer.max_steps=4400 run_name=final

python -m im2wav.convert run="$out/runs/final" out="$out/model" dtype=fp16 license=cc-by-sa-4.0
