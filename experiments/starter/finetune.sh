#!/usr/bin/env bash
# Fine-tuning by experiment: cats and horses are held out of a starter training, then learnt from 20 clips.
#
#     bash experiments/starter/finetune.sh RECORDINGS RENDERED CODEC UP_PRIOR [OUT]
#
# RECORDINGS and RENDERED are folders with sources.csv (build.sh), CODEC and UP_PRIOR checkpoints of a starter training.
# Bits of the held-out clips are valid/loss in OUT/runs/NAME/low_prior/csv/*/metrics.csv.
set -euo pipefail
recordings=$1 rendered=$2 codec=$3 up=$4 out=${5:-data/finetuning}
here=$(dirname "$0")
export OMP_NUM_THREADS=1
train() { python -m im2wav.train paths.runs="$out/runs" "$@"; }

python "$here/hold_out.py" "$out" "$recordings" "$rendered"
for pairs in base few; do
    python -m im2wav.embed encoder=efficientnet_lite2 encoder.pseudo_embeddings="$here/classes.yaml" \
        input="$out/$pairs.csv" out="$out/$pairs"
done
python -m im2wav.tokenize data.root="$out/base" codec="$codec" data.num_samples=32640

# the base: random crops of all other classes; its best checkpoint, beside the codec and the up prior of the starter
train experiment=starter/low_prior data.root="$out/base" codec="$codec" sizes.low_codebooks=4 trainer.max_steps=2200 \
    run_name=all
mkdir -p "$out"/base_model/{vqvae,low_prior,up_prior}
cp "$codec" "$out/base_model/vqvae/last.ckpt"
cp "$out/runs/all/low_prior/best.ckpt" "$out/base_model/low_prior/last.ckpt"
cp "$up" "$out/base_model/up_prior/last.ckpt"

few=(model=low_prior data.root="$out/few" data.pairing=label data.windows_per_epoch=320 data.batch_size=8
    trainer=cpu trainer.precision=bf16-mixed trainer.max_steps=400 callbacks.dashboard=null)
base=(init_from="$out/base_model" scheduler=cosine model.scheduler.steps=20)
train "${few[@]}" "${base[@]}" model.optimizer.lr=1e-12 trainer.max_steps=1 data.windows_per_epoch=8 run_name=base
train "${few[@]}" "${base[@]}" model.optimizer.lr=1e-3 adapter=lora run_name=lora
train "${few[@]}" "${base[@]}" model.optimizer.lr=1e-4 run_name=full
for rate in 2e-3 1e-4; do
    train "${few[@]}" experiment=starter/low_prior sizes.low_codebooks=4 codec="$codec" data.codes=fresh \
        data.num_samples=32640 model.early_positions=0 model.optimizer.lr=$rate run_name="scratch_$rate"
done

# memorised: the beginnings, with six times the weight for the first frames
memorised=(data.crop=start model.early_positions=8 trainer.max_steps=600 data.windows_per_epoch=1600)
train "${few[@]}" "${base[@]}" "${memorised[@]}" model.optimizer.lr=3e-4 run_name=full_memorised
train "${few[@]}" "${base[@]}" "${memorised[@]}" model.optimizer.lr=4e-3 adapter=lora model.adapter.rank=32 \
    model.adapter.alpha=64 run_name=lora_memorised

# one sound for each clip
sounds() { # RUN CHECKPOINT
    python -m im2wav.sample input="$out/few" pretrained="$out/base_model" out="$out/sounds/$1" \
        low="$out/runs/$1/low_prior/$2.ckpt" "${@:3}"
    python -m im2wav.evaluate generated="$out/sounds/$1/up" reference="$out/few/wav" labels="$out/few.csv" \
        out="$out/sounds/$1/evaluation"
}
for name in base lora full scratch_1e-4; do
    sounds $name best
done
for name in full_memorised lora_memorised; do
    sounds $name last sampler.guidance_scale=1.2 sampler.temperature=0.86 sampler.up_temperature=0.5
done
