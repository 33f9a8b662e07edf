"""Runs the tests marked `fake_cuda` in a child process on the simulated card, and shows its reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import HAS_COMPILER, REPO
from cuda.child import IN_CHILD

is_child = IN_CHILD in os.environ


class Child:
    """A pytest process on the simulated card that runs some tests, in their order.

    Args:
        tests: their node ids.
    """

    def __init__(self, tests: list[str]):
        self.tests = tests
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        path = os.pathsep.join([str(REPO / "tests"), *filter(None, sys.path)])
        environment = {**own, IN_CHILD: "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cuda.child", str(write), *tests],
            cwd=REPO,
            env=environment,
            pass_fds=[write],
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        os.close(write)
        self.pipe = os.fdopen(read)

    def reports(self, item: pytest.Item) -> Iterator[Any]:
        """Reports of one test, as they come; one that failed where the process died."""
        for line in self.pipe:
            data = json.loads(line)
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            if report.nodeid != item.nodeid:
                raise RuntimeError(f"expected a report of {item.nodeid}, got one of {report.nodeid}")
            yield report
            if report.when == "teardown":
                return
        yield self.death(item)

    def death(self, item: pytest.Item) -> pytest.TestReport:
        """What is said of a test during which the process died."""
        code = self.process.wait()
        self.output.seek(0)
        message = f"the process with the simulated card ended with exit code {code}:\n{self.output.read()[-5000:]}"
        return pytest.TestReport(item.nodeid, item.location, {}, "failed", message, "call")

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()
        self.output.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fake_cuda") and not HAS_COMPILER:
            item.add_marker(pytest.mark.skip(reason="no C++ compiler for the simulated card"))
        elif item.get_closest_marker("fake_cuda") and not is_child:
            item.add_marker(pytest.mark.timeout(0))  # the child's clock runs


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if is_child or not HAS_COMPILER or item.get_closest_marker("fake_cuda") is None:
        return None
    child = child_for(item)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in child.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


CHILD = pytest.StashKey[Child]()


def child_for(item: pytest.Item) -> Child:
    """The process in which a test runs; a new one where there is none, or where it has ended.

    It gets all tests of the session that are still to come; a worker of pytest-xdist knows but those of the file.
    """
    stash = item.session.stash
    child = stash.get(CHILD, None)
    if child is not None and item.nodeid in child.tests and child.process.poll() is None:
        return child
    if child is not None:
        child.close()
    todo = [i for i in item.session.items[item.session.items.index(item) :] if i.get_closest_marker("fake_cuda")]
    if hasattr(item.config, "workerinput"):
        todo = [i for i in todo if i.path == item.path]
    stash[CHILD] = Child([i.nodeid for i in todo])
    return stash[CHILD]


def pytest_sessionfinish(session: pytest.Session) -> None:
    child = session.stash.get(CHILD, None)
    if child is not None:
        child.close()


@pytest.fixture
def machine() -> Iterator[Any]:
    """The simulated machine with its counters at zero."""
    from cuda.state import machine

    machine.reset()
    yield machine
    machine.reset()


@pytest.fixture
def two_devices(machine: Any) -> Any:
    """The simulated machine with a second card."""
    machine.num_devices = 2
    return machine


class CardRuns(NamedTuple):
    """Runs of the three tiny models that belong together, trained on the card with trainer=gpu as it is shipped.

    Attributes:
        folder: of the runs; `base` is their name.
        results: by model, what `train` returned.
        costs: by model, of its steps.
    """

    folder: Path
    results: dict[str, Any]
    costs: dict[str, Any]


@pytest.fixture(scope="session")
def card_runs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> CardRuns:
    from cuda.training import MODELS, train_tiny

    runs = CardRuns(tmp_path_factory.mktemp("card_runs"), {}, {})
    for model in MODELS:
        options = ["trainer=gpu", "trainer.max_steps=6", "callbacks.dashboard.every_n_steps=3"]
        runs.results[model], runs.costs[model] = train_tiny(model, pairs, runs.folder, *options)
    return runs
