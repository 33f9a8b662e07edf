"""The simulated card itself: it refuses what CUDA refuses, and counts what makes the host wait."""

import threading

import pytest
import torch

pytestmark = pytest.mark.fake_cuda


@pytest.fixture
def x(two_devices):
    return torch.arange(3.0, device="cuda")


def capture(work, **options):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        work()
    return graph


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3).add_(x),
        lambda x: torch.nn.functional.embedding(torch.zeros(1).long(), x[:, None]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x + x.to("cuda:1"),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda x: torch.nn.Linear(3, 3)(x),
    ],
    ids=["add", "in_place", "embedding", "index", "two_cards", "cpu_generator", "linear"],
)
def test_tensors_on_different_devices_raise(x, work):
    with pytest.raises(RuntimeError, match=r"on the same device|generator|cpu"):
        work(x)


def test_a_tensor_on_the_card_does_not_become_a_numpy_array(x):
    with pytest.raises(TypeError, match=r"use tensor.cpu\(\) first|Use Tensor.cpu\(\) first"):
        x.numpy()


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.ones(3, device="cuda").copy_(torch.ones(3)),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x[x > 1],
        lambda x: x[torch.tensor([1])],
        lambda x: torch.cuda.synchronize(),
    ],
    ids=["item", "bool", "tolist", "cpu", "copy", "tensor", "mask", "index", "synchronize"],
)
def test_each_wait_is_counted_and_is_an_error_during_a_capture(x, machine, work):
    machine.syncs.clear()
    work(x)
    assert machine.syncs
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        capture(lambda: work(x))


def test_what_does_not_wait_is_not_counted(x, machine):
    (x * 2 + 1).sum().view(1).expand(2)
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    x[x.long()]
    assert not machine.syncs


def test_operations_are_counted_and_views_are_not(x, machine):
    machine.operations.clear()
    (x.view(3, 1).T * 2).sum()
    assert dict(+machine.operations) == {"mul": 1, "sum": 1}


def test_gradients_are_on_the_card(x, machine):
    net = torch.nn.Linear(3, 2).to("cuda")
    net(x).square().sum().backward()
    assert net.weight.grad.is_cuda
    expected = 2 * torch.outer(net(x).detach().cpu(), torch.arange(3.0))
    torch.testing.assert_close(net.weight.grad.cpu(), expected)


def test_a_capture_runs_nothing_and_each_replay_runs_once(x, machine):
    count = torch.zeros(1, device="cuda")
    graph = capture(lambda: count.add_(x.sum()))
    assert count.item() == 0
    graph.replay()
    graph.replay()
    assert count.item() == 6
    x += 1  # replays read the memory as it is now
    graph.replay()
    assert count.item() == 12


def test_a_capture_on_another_device_is_empty(two_devices):
    y = torch.zeros(1, device="cuda:1")
    with pytest.warns(UserWarning, match="Graph is empty"):
        graph = capture(lambda: y.add_(1))
    graph.replay()
    assert y.item() == 1  # it ran during the capture, and never again
    with torch.cuda.device(1):
        graph = capture(lambda: y.add_(1))
    graph.replay()
    assert y.item() == 2


def test_a_call_of_another_thread_invalidates_a_global_capture(x):
    def work():
        thread = threading.Thread(target=torch.cuda.Event().query)
        thread.start()
        thread.join()
        x.add_(1)

    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture(work)
    capture(work, capture_error_mode="thread_local").replay()


def test_other_threads_use_the_card(x):
    found = []
    thread = threading.Thread(target=lambda: found.append((x + torch.ones(3, device="cuda")).cpu()))
    thread.start()
    thread.join()
    assert found[0].tolist() == [1, 2, 3]


def test_freed_memory_is_not_counted(machine):
    before = machine.allocated()
    x = torch.zeros(256, device="cuda")
    view = x[:10]
    assert machine.allocated() == before + 1024
    del x
    assert machine.allocated() == before + 1024
    del view
    assert machine.allocated() == before
