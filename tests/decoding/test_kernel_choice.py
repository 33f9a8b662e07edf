"""The kernel of a linear layer is measured once on a machine, remembered, and never one that is not batch-invariant."""

import pytest
import torch

from im2wav.decoding import linear as module
from im2wav.decoding.linear import PackedLinear, PlainLinear, fastest_kernel, linear_maker, packs_weights

pytestmark = pytest.mark.skipif(not packs_weights(torch.float32), reason="needs oneDNN")
SHAPE = (320, 256)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder for what is remembered."""
    monkeypatch.setenv("IM2WAV_CACHE", str(tmp_path))
    fastest_kernel.cache_clear()
    yield tmp_path / "kernels"
    fastest_kernel.cache_clear()


def slow(kind, monkeypatch):
    """Make a kernel slower than the other one."""
    apply = kind.__call__

    def call(self, x):
        torch.randn(200, 200) @ torch.randn(200, 200)
        return apply(self, x)

    monkeypatch.setattr(kind, "__call__", call)


def test_the_faster_one_is_chosen_and_remembered(folder, monkeypatch):
    """The second process, which would measure otherwise, reads what the first one found."""
    monkeypatch.setattr(module, "_is_batch_invariant", lambda linear, x: True)
    with monkeypatch.context() as patch:
        slow(PackedLinear, patch)
        assert fastest_kernel(SHAPE, torch.float32) is PlainLinear
    fastest_kernel.cache_clear()
    monkeypatch.setattr(module, "_measured_kernel", None)
    assert fastest_kernel(SHAPE, torch.float32) is PlainLinear
    make = linear_maker("fp32", torch.device("cpu"))
    assert isinstance(make(torch.eye(*SHAPE), torch.zeros(SHAPE[0])), PlainLinear)
    assert [path.name.endswith("torch.float32_320x256") for path in folder.iterdir()] == [True]


def test_a_kernel_that_rounds_by_the_batch_is_not_chosen(monkeypatch):
    """However much faster it is."""
    slow(PackedLinear, monkeypatch)

    def call(self, x):
        return torch.nn.functional.linear(x, self.weight) * (1 + 1e-6 * len(x))

    monkeypatch.setattr(PlainLinear, "__call__", call)
    assert fastest_kernel(SHAPE, torch.float32) is PackedLinear


def test_the_first_of_two_processes_decides(folder, monkeypatch):
    """Another process writes its choice while this one measures."""
    folder.mkdir()

    def measure(shape, dtype):
        name = module.re.sub(r"[^\w.-]+", "_", f"{module._machine_name()} {dtype} 320x256")
        (folder / name).write_text("PlainLinear")
        return PackedLinear

    monkeypatch.setattr(module, "_measured_kernel", measure)
    assert fastest_kernel(SHAPE, torch.float32) is PlainLinear


def test_without_a_folder_to_write_to_no_measurement_decides(tmp_path, monkeypatch):
    """A choice that cannot be remembered could differ in the next run."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IM2WAV_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module, "_measured_kernel", lambda shape, dtype: PlainLinear)
    assert fastest_kernel(SHAPE, torch.float32) is PackedLinear


def test_a_measurement_leaves_the_random_numbers_alone():
    """The codes of a seed do not depend on whether this machine has measured before."""
    before = torch.get_rng_state()
    fastest_kernel(SHAPE, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)


def test_small_layers_are_not_measured(folder):
    """Their time is that of the call."""
    assert fastest_kernel((64, 64), torch.float32) is PackedLinear
    assert not folder.exists()
