"""What commands know about their system: progress on a terminal or in a log file, CPU cores and threads."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ASSETS, TINY, TINY_NET, command
from helpers import TINY_ENCODER
from im2wav import system
from im2wav.system import LogLines, track_progress


@pytest.fixture
def lines(monkeypatch, caplog):
    """The lines that are logged, of every update."""
    monkeypatch.setattr(system, "INTERVAL", 0.0)
    caplog.set_level("INFO", "im2wav.system")
    return caplog


def test_a_line_every_half_minute_names_done_total_rate_and_remaining(caplog):
    caplog.set_level("INFO")
    clock = [0.0]
    with track_progress(desc="embed", unit="item", total=200) as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = 0.0
        for second in range(1, 101):
            clock[0] = float(second)
            bar.update()
        clock[0] = 131.0
        bar.update(0)  # one item takes long
    said = caplog.messages
    assert len(said) == 4
    assert said[:2] == [
        f"embed: {n} of 200, 1.00item/s, {left} remaining" for n, left in ((30, "02:50"), (60, "02:20"))
    ]
    assert said[3].startswith("embed: 100 of 200, ")


def test_short_work_logs_nothing(caplog, capfd):
    caplog.set_level("INFO")
    assert list(track_progress(range(3), desc="shard", unit="chunk")) == [0, 1, 2]
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = track_progress(range(3), desc="shard", unit="chunk")
    assert not isinstance(bar, LogLines)
    assert list(bar) == [0, 1, 2]
    assert "shard: 100%" in capfd.readouterr().err


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(ASSETS / "images" / "owl_03.jpg", folder)
    return folder


def test_commands_log_their_progress(lines, pairs, trained, photo, tmp_path, capfd):
    codec, names = f"codec={trained}/base/vqvae/last.ckpt", ["run_name=base", f"paths.runs={trained}"]
    shutil.copytree(pairs, tmp_path / "pairs")
    sampled = [*names, f"input={photo}", f"out={tmp_path / 'out'}", "device=cpu"]
    training = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], "trainer.max_steps=2"]
    judged = [
        f"generated={pairs / 'wav'}",
        f"reference={pairs / 'wav'}",
        "resamples=50",
        "resamples_fd=3",
        "seconds=1.2",
    ]
    runs = {
        "embed: 1 of 1": ("embed", f"input={photo}", f"out={tmp_path / 'new'}", *TINY_ENCODER),
        "tokenize: 6 of 6": ("tokenize", f"data.root={tmp_path / 'pairs'}", codec, "data.num_samples=4096"),
        "train: 2 of 2": ("train", *training, f"paths.output={tmp_path / 'run'}", f"paths.runs={tmp_path}"),
        "owl_03: 640 of 640": ("sample", *sampled),
        "evaluate generated: 6 of 6": ("evaluate", *judged, f"out={tmp_path / 'figures'}"),
    }
    for line, (verb, *arguments) in runs.items():
        assert command(verb, *arguments) == 0, capfd.readouterr().err
        out, err = capfd.readouterr()
        assert any(text.startswith(line) for text in out.splitlines()), out[-2000:]
        assert "\r" not in out + err


@pytest.fixture
def files(monkeypatch):
    """The files that the system's module reads, by path; others do not exist. The machine has 64 cores."""
    found = {}
    monkeypatch.setattr(system, "_read", lambda path: found.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored if a test sets it
        monkeypatch.delenv(name)
    return found


V1 = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("given", "cores"),
    [
        ({}, 64),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "/proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/job\n0::/\n",
                f"{V1}/job/cpu.cfs_quota_us": "50000\n",
                f"{V1}/job/cpu.cfs_period_us": "100000\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
    ],
)
def test_cores_are_those_of_the_quota_of_the_control_groups(files, given, cores):
    files |= given
    assert system.num_cores() == cores
    system.configure_threads()
    assert os.environ.get("OMP_NUM_THREADS") == (str(cores) if cores < 64 else None)


def test_cores_are_those_of_the_affinity(files, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert system.num_cores() == 2
    system.configure_threads()
    assert "OMP_NUM_THREADS" not in os.environ  # OpenMP knows


@pytest.mark.parametrize(("runnable", "policy"), [(1, None), (20, None), (40, "passive")])
def test_threads_wait_passively_where_others_use_the_cores(files, runnable, policy):
    files["/proc/loadavg"] = f"9.0 9.0 9.0 {runnable}/900 123\n"
    system.configure_threads()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_variables_that_are_set_are_kept(files, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    files |= {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "100000 100000\n"}
    files["/proc/loadavg"] = "9.0 9.0 9.0 99/900 123\n"
    system.configure_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "active")


def test_commands_configure_threads_before_torch_is_imported():
    code = "import sys, im2wav.cli as cli\n"
    code += "cli.configure_threads = lambda: sys.exit('late' if 'torch' in sys.modules else 'early')\n"
    code += "import im2wav.sample\nim2wav.sample.main()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "early"
