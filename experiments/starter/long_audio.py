"""How often each window of longer audio of the starter model is right, by the overlap of its windows.

    python experiments/starter/long_audio.py [--sounds 4] [OVERLAP ...]

Audio of four windows for pseudo-embeddings of the 30 ImageHear labels. Prints the fraction of sounds whose label is the
most likely of the 30 for YAMNet (chance 0.03), for each window.
"""

import argparse
import sys
from pathlib import Path

import torch
from baselines import training_label

from im2wav import Im2Wav
from im2wav.evaluation.imagehear import class_groups, class_names
from im2wav.evaluation.metrics import best_groups
from im2wav.evaluation.taggers import Yamnet
from im2wav.inference.generate import generate
from im2wav.inference.inputs import Input
from im2wav.inference.request import CodeBuffer, Request
from im2wav.prepare.pseudo_embeddings import PseudoEmbeddings, read_classes

WINDOWS = 4


def main() -> None:
    """Print a line for each overlap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overlaps", nargs="*", type=float, default=[0.5, 0.25, 0.0], help="fractions of a window")
    parser.add_argument("--sounds", type=int, default=4, help="of each label")
    given = parser.parse_args()
    model, tagger = Im2Wav.from_pretrained(device="cpu"), Yamnet()
    embeddings = PseudoEmbeddings(model.encoder, read_classes(str(Path(__file__).with_name("classes.yaml"))))
    labels = [training_label(name) for name in class_names()]
    groups, size = class_groups(tagger.labels), model.networks.window
    for overlap in given.overlaps:
        right = torch.zeros(WINDOWS, dtype=torch.float64)
        for number in range(given.sounds):
            buffers = []
            for place, label in enumerate(labels):
                item = Input(label, "image", embeddings=embeddings(label, f"{label}_{number}"))
                seed, sampling = 1000 * number + place, model.sampling({"overlap": overlap})
                request = Request(item, seed=seed, samples=WINDOWS * size, sampling=sampling, recording=model.recording)
                buffers.append(CodeBuffer(model.networks, request))
            for sounds in generate([buffers]):
                for place, sound in enumerate(sounds):
                    scores = torch.stack([tagger.analyse(part).scores.flatten() for part in sound.wav.split(size)])
                    right += best_groups(scores, groups)[:, place]
        found = ", ".join(f"{value:.2f}" for value in right / (given.sounds * len(labels)))
        sys.stdout.write(f"overlap {overlap:g}: right of 30 by window {found}\n")


if __name__ == "__main__":
    main()
