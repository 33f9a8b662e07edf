"""Private functions of torch, Lightning and LitData that im2wav uses. A failure after an update says which changed."""

import inspect

import pytest
import torch


def test_torch_operators():
    weight = torch.randn(8, 8)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    rows = torch.randn(1, 8)
    found = torch.ops.mkldnn._linear_pointwise.default(rows, packed, None, "none", [], "")
    torch.testing.assert_close(found, rows @ weight.T)
    assert callable(torch.ops.aten._weight_int8pack_mm.default)
    for name in ("_foreach_copy_", "_foreach_sub"):
        assert callable(getattr(torch, name))


def test_torch_compiler():
    import torch._dynamo
    import torch._inductor

    assert {"gm", "example_inputs", "options"} <= set(inspect.signature(torch._inductor.compile).parameters)
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        assert hasattr(torch._dynamo.config, name)
    assert issubclass(torch._dynamo.exc.TorchDynamoException, Exception)


def test_torch_tensor_modes():
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    assert issubclass(FakeTensorMode, TorchDispatchMode)
    with FakeTensorMode(), unset_fake_temporarily():
        assert type(torch.zeros(1)) is torch.Tensor
    assert tree_leaves({"a": [1, 2]}) == [1, 2]


def test_lightning():
    import lightning.pytorch as pl
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    assert "self.procs" in inspect.getsource(_SubprocessScriptLauncher)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    assert callable(trainer._signal_connector.register_signal_handlers)


def test_litdata():
    binary_writer = pytest.importorskip("litdata.streaming.writer").BinaryWriter
    assert {"cache_dir", "chunk_bytes"} <= set(inspect.signature(binary_writer).parameters)


def test_gradio():
    """The live player of the web page replaces a method that encodes with the program ffmpeg."""
    audio = pytest.importorskip("gradio").Audio
    assert list(inspect.signature(audio.stream_output).parameters) == ["self", "value", "output_id", "first_chunk"]
    assert inspect.iscoroutinefunction(audio.flush_stream_output)
    assert list(inspect.signature(audio.preprocess).parameters) == ["self", "payload"]
