"""Runs pytest on the simulated card: `python -m cuda.child FD TEST...`, with one report a line to a file descriptor."""

import json
import logging
import os
import sys
from typing import Any

IN_CHILD = "IM2WAV_SIMULATED_CARD"  # set in the environment of this process


class Reporter:
    """A pytest plugin that sends all reports to the parent process."""

    def __init__(self, pipe: Any):
        self.pipe = pipe

    def pytest_configure(self, config: Any) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.pipe.write(json.dumps(data) + "\n")
        self.pipe.flush()


def main() -> int:
    """Load the shim, then torch, put the simulated card in its place, and run the tests."""
    from cuda.shim import load_shim

    load_shim()
    import pytest
    import torch

    from cuda import card, runtime

    torch.set_num_threads(1)
    runtime.install()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    with os.fdopen(int(sys.argv[1]), "w") as pipe, card.CardMode():
        return int(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]], plugins=[Reporter(pipe)]))


if __name__ == "__main__":
    sys.exit(main())
