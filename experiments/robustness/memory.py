"""Peak memory of a process that decodes a video as `embed` does.

python experiments/robustness/memory.py CLIP [auto|pyav]
"""

import logging
import sys
import time
from functools import partial
from pathlib import Path

from im2wav.media.encoder import resized_square
from im2wav.media.video import Video
from im2wav.prepare import clip_reader  # noqa: F401 - the imports of a decoding process

log = logging.getLogger("memory")


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path, reader, *_ = [*sys.argv[1:], "auto"]
    before, began, frames, crop = peak(), time.monotonic(), 0, partial(resized_square, size=224)
    video = Video(path, 224, reader)
    for images in video.frames(30.0):
        frames += len([crop(image) for image in images])
    used, seconds = type(video._frames).__name__, time.monotonic() - began
    log.info("%s: %d frames, peak %.0f MiB, %.0f MiB of them imports; %.0f s", used, frames, peak(), before, seconds)


if __name__ == "__main__":
    main()
