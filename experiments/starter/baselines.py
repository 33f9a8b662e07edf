"""Baselines for ImageHear: training recordings instead of generated audio.

    python experiments/starter/baselines.py IMAGES PAIRS MODEL OUT [--per-class 120]
    python -m im2wav.evaluate mode=imagehear generated=OUT/KIND per_class=120

KIND is `true` (recordings of the photograph's class), `true_codec` (the same through the codec of the model), or `read`
(recordings of the label that the image encoder reads). Recordings of the training split, from a random position.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import soundfile
import torch
from PIL import Image
from safetensors import safe_open

from im2wav import Im2Wav
from im2wav.data.pairs import CLASSES_FILE, PairsFolder
from im2wav.data.windows import extend_wav
from im2wav.evaluation.imagehear import find_imagehear_images, image_classes, images_per_class


def training_label(name: str) -> str:
    """The label of the training recordings of an ImageHear class."""
    return {"police": "police_siren"}.get(name.lower(), name.lower())


@torch.inference_mode()
def main() -> None:
    """Write the audio files of all kinds; print how often the image encoder reads the right label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of the 101 photographs")
    parser.add_argument("pairs", type=Path, help="the pairs folder that the model was trained on")
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--per-class", type=int, default=120, help="audio files of each class")
    given = parser.parse_args()
    folder, model = PairsFolder(given.pairs), Im2Wav.from_pretrained(given.model, device="cpu")
    with safe_open(given.pairs / CLASSES_FILE, "pt") as file:
        labels = json.loads(file.metadata()["labels"])
    recordings: dict[str, list] = {}
    for pair in folder.pairs:
        if pair.split == "train" and "_changed" not in pair.id:
            recordings.setdefault(pair.label, []).append(pair)
    draw, right, counts = random.Random(0), 0, images_per_class(given.per_class)
    images, classes = find_imagehear_images(given.images), image_classes()
    scores = model.networks.low.conditioner.class_scores
    for kind in ("true", "true_codec", "read"):
        (given.out / kind).mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        true = training_label(classes[name])
        read = labels[int(scores(model.encoder.encode([Image.open(images[name])]))[0].argmax())]
        right += read == true
        for number in range(count):
            for kind, label in (("true", true), ("read", read)):
                wav = folder.read_wav(draw.choice(recordings[label]))
                start = draw.randrange(max(1, len(wav) - model.networks.window + 1))
                wav = extend_wav(wav[start : start + model.networks.window], model.networks.window, "loop")
                made = {kind: wav}
                if kind == "true":
                    codec = model.networks.codec
                    made["true_codec"] = codec.decode(codec.encode(wav[None, None]), "up")[0, 0].clamp(-1, 1)
                for folder_name, samples in made.items():
                    path = given.out / folder_name / f"{name}_{number:02d}.wav"
                    soundfile.write(path, samples.numpy(), model.sample_rate, subtype="PCM_16")
    sys.stdout.write(f"the image encoder reads the right label of {right} of {len(counts)} photographs\n")


if __name__ == "__main__":
    main()
