"""Several training runs in one process of a group: `python train_runs.py '[[override, ...], ...]'`.

What two processes cost is mostly their start, which the runs share.
"""

import faulthandler
import json
import sys
from contextlib import suppress

from conftest import config
from im2wav.system import Interrupted
from im2wav.train import train

if __name__ == "__main__":
    faulthandler.enable()
    for overrides in json.loads(sys.argv[1]):
        sys.stderr.write(next(name for name in overrides if name.startswith("paths.output=")) + "\n")
        with suppress(Interrupted):
            train(config("train", *overrides))
