"""The decode engine equals the plain, uncached pass, whatever stands beside a sequence in its batch."""

import pytest
import torch

from conftest import needs_compiler
from helpers import CASES, GREEDY, conditions, forced_logits, low_prior, up_prior
from im2wav.decoding import Decoder, SamplingOptions, sample_codes
from im2wav.decoding import decoder as memory
from im2wav.decoding.decoder_layer import LayerCache, PlaceTable
from im2wav.decoding.sampler import uniforms
from im2wav.prior import Conditions, Prior
from im2wav.prior.transformer import KINDS, attend


@pytest.mark.parametrize(("make", "given"), CASES)
@pytest.mark.parametrize(
    ("prefix", "compile"),
    [(0, False), (1, False), (5, False), (8, False), (37, False), pytest.param(5, True, marks=needs_compiler)],
)
def test_step_by_step_equals_the_whole_forward_pass(make, given, prefix, compile):
    prior, items = make(), 2 if compile else 3  # two guided items are one group of rows, and so half the compilation
    codes, given = torch.randint(16, (items, 64)), given.take(slice(items))
    decoder = Decoder(prior, compile=compile)
    both = Conditions.cat([given, given.null_like()]) if prior.can_be_guided else given
    rows = codes.repeat(len(both.clip) // items, 1)
    with torch.no_grad():
        whole = prior(rows, both)[:, prefix:]
    logits = forced_logits(decoder, codes, given, prefix)
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)


def kv_of(length, heads=2, width=4, batch=3):
    torch.manual_seed(0)
    return torch.randn(3, batch, heads, length, width, dtype=torch.float64)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [0, 1, 6, 7, 12, 17])
def test_cached_attention_equals_the_fast_path(kind, prefix, on_device):
    q, *kv = kv_of(24)
    whole, kv = attend(kind, q, *kv, 6), torch.stack(kv)
    cache, table = LayerCache(kind, 3, 2, 24, 4, 6, like=q), PlaceTable(KINDS, 24, 6, like=q)
    for item in range(3):  # one by one, as a prefill does
        cache.fill(kv[:, item : item + 1, :, :prefix], torch.tensor([item]))
    for t in range(prefix, 24):
        now = slice(t, t + 1)
        if on_device:
            out = cache.attend_at(q[:, :, now], kv[:, :, :, now], table.at(torch.tensor([t]))[kind])
        else:
            out = cache.attend(q[:, :, now], kv[:, :, :, now], t)
        torch.testing.assert_close(out, whole[:, :, now], rtol=1e-10, atol=1e-12)


def test_caches_are_no_larger_than_what_is_needed():
    sizes = {kind: LayerCache(kind, 1, 1, 64, 1, 8, like=torch.zeros(1)).buffer.numel() // 2 for kind in KINDS}
    assert sizes == {"row": 8, "previous_row": 16, "column": 64}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_item_s_codes_depend_on_its_seed_alone(precision):
    """Batch 1 against batch 8, a prefix too: equal codes, and logits equal to the last bit."""
    prior, given = low_prior(), conditions(8)
    decoder, options, uniform = Decoder(prior, precision), SamplingOptions(), uniforms(range(8), 64, "low")
    prefix = torch.randint(16, (8, 11))
    together = [sample_codes(decoder, given, uniform, options, p) for p in (None, prefix)]
    logits = forced_logits(decoder, together[0], given)
    for row in range(8):
        one = slice(row, row + 1)
        for codes, begun in zip(together, (None, prefix[one]), strict=True):
            assert (sample_codes(decoder, given.take(one), uniform[one], options, begun)[0] == codes[row]).all()
        alone = forced_logits(decoder, together[0][one], given.take(one))
        assert (alone == logits[[row, 8 + row]]).all()
    assert len(together[0].unique(dim=0)) == 8


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.03), ("int8", 0.06)])
@pytest.mark.parametrize(("make", "given"), CASES)
def test_fewer_bytes_stay_close(make, given, precision, error):
    prior, codes = make(), torch.randint(16, (3, 64))
    exact, rounded = (forced_logits(Decoder(prior, p), codes, given, 8) for p in ("fp32", precision))
    difference = (rounded - exact).std() / exact.std()
    assert 1e-6 < difference < error


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "error"),
    [
        pytest.param("fp32", 1e-5, marks=pytest.mark.slow),
        ("bf16", 0.03),
        pytest.param("int8", 0.06, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_stay_close_and_are_batch_invariant(precision, error):
    """The up prior is not guided: a sound alone is a row alone, and five are a group of four and one."""
    prior, given, codes = up_prior(), conditions(5, coarse=True), torch.randint(16, (5, 64))
    decoder = Decoder(prior, precision, compile=True)
    together, exact = forced_logits(decoder, codes, given, 8), forced_logits(Decoder(prior), codes, given, 8)
    assert (together - exact).std() / exact.std() < error
    assert {shape[0] for _, _, shape, *_ in decoder.fused.kernels} == {2, 4}
    for row in (0, 4):
        one = slice(row, row + 1)
        assert (forced_logits(decoder, codes[one], given.take(one), 8) == together[one]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_batch_invariant_whatever_the_number_of_threads(kind, threads):
    """Heads as wide as real ones: narrow ones do not show it."""
    torch.manual_seed(0)
    q, kv = torch.randn(9, 2, 64, 128), torch.randn(2, 9, 2, 64, 128)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        caches = [LayerCache(kind, count, 2, 64, 128, 16, like=q) for count in (9, 1, 3)]
        for t in range(64):
            now = slice(t, t + 1)
            whole, one, some = (
                cache.attend(q[rows, :, now], kv[:, rows, :, now], t)
                for cache, rows in zip(caches, (slice(9), slice(8, 9), slice(4, 7)), strict=True)
            )
            assert (whole[8:] == one).all()
            assert (whole[4:7] == some).all()
    finally:
        torch.set_num_threads(before)


def test_a_consumed_prior_is_held_once_and_cannot_be_called():
    prior, given = low_prior(), conditions()
    codes = sample_codes(prior, given, uniforms([1, 2, 3], 64, "low"), GREEDY)
    decoder = Decoder(prior, consume=True)
    assert all(p.is_meta for p in prior.transformer.parameters())
    assert (sample_codes(decoder, given, uniforms([1, 2, 3], 64, "low"), GREEDY) == codes).all()
    with pytest.raises(RuntimeError), torch.no_grad():
        prior(codes, given)


def test_codes_come_in_parts():
    prior, given, uniform = up_prior(), conditions(coarse=True), uniforms([1, 2, 3], 64, "up")
    decoding, calls = Decoder(prior).start(given, uniform, SamplingOptions()), []
    parts = [decoding.steps(5, calls.append), decoding.step()[:, None], decoding.steps()]
    whole = sample_codes(prior, given, uniform, SamplingOptions())
    assert (torch.cat(parts, 1) == whole).all()
    assert (decoding.codes == whole).all()
    assert calls == [1] * 5
    with pytest.raises(ValueError, match="all 64 codes"):
        decoding.step()


def test_where_nothing_can_be_compiled_it_is_said(monkeypatch, tmp_path):
    from torch._inductor import config, cpp_builder

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    decoder = Decoder(Prior(16, 64, {"width": 16, "depth": 2, "blocks": 8}, {"clip_dim": 6}), compile=True)
    said = pytest.raises(ValueError, match=r"compile=true: compilation failed \(.*no-compiler.*compile=false")
    cpp_builder.cpp_compiler_search.cache_clear()
    with said, config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        sample_codes(decoder, conditions(1), uniforms([1], 64, "low"), GREEDY)
    cpp_builder.cpp_compiler_search.cache_clear()


def test_unknown_precisions_are_rejected():
    with pytest.raises(ValueError, match="precision=fp8"):
        Decoder(Prior(16, 64, {"width": 32, "depth": 3, "blocks": 8}), "fp8")


@pytest.mark.parametrize(("make", "given"), CASES)
@pytest.mark.parametrize("prefix", [0, 7, 16])
def test_a_step_that_reads_its_position_from_the_device_draws_the_same(make, given, prefix):
    """What a CUDA graph records, run without one."""
    prior, uniform = make(), uniforms([1, 2, 3], 64, "any")
    begun = torch.randint(16, (3, prefix))
    expected = sample_codes(prior, given, uniform, SamplingOptions(), begun)
    decoder = Decoder(prior)
    decoder.on_device = True
    assert (sample_codes(decoder, given, uniform, SamplingOptions(), begun) == expected).all()


def test_what_one_decoding_leaves_behind_does_not_reach_the_next():
    prior, given, options = low_prior(), conditions(), SamplingOptions()
    decoder, uniform = Decoder(prior), uniforms([1, 2, 3], 64, "low")
    first = sample_codes(decoder, given, uniform, options)
    spare = decoder.spare
    other = sample_codes(decoder, given, uniforms([4, 5, 6], 64, "low"), options, prefix=first[:, :20])
    assert decoder.spare is spare
    assert (sample_codes(decoder, given, uniform, options) == first).all()
    assert (other != first).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("make", "given"), CASES)
def test_memory_is_estimated_as_it_is_allocated(make, given, precision):
    prior = make()
    decoding = Decoder(prior, precision).start(given, uniforms([1, 2, 3], 64, "any"), SamplingOptions())
    taken = sum(cache.buffer.nbytes for cache in decoding.caches) + decoding.condition.nbytes
    assert 3 * memory.bytes_per_sequence(prior, precision, 2 if prior.can_be_guided else 1) == taken


def test_as_many_sequences_as_fit(monkeypatch):
    prior = low_prior()
    weights = sum(p.nbytes for p in prior.parameters())
    each = memory.bytes_per_sequence(prior, "fp32", 2)
    for room, fit in ((0, 1), (5.5, 5), (1000, 64)):
        monkeypatch.setattr(memory, "free_memory", lambda device, room=room: (weights + room * each) / 0.6)
        assert memory.batch_that_fits([prior], "fp32") == fit
    monkeypatch.undo()
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or free > 2**20
