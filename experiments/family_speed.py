"""Seconds to generate one window by either family with random weights: `python experiments/family_speed.py`.

Batch 1, with guidance, fp32, from image embeddings to samples. Options of `im2wav.train` choose the networks:
`python experiments/family_speed.py family=residual size=starter`.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from im2wav.cli import CONF, instantiate, register_resolvers
from im2wav.codec.codec import decode_wave
from im2wav.decoding import SamplingOptions, make_decoder
from im2wav.decoding.sampler import uniforms
from im2wav.prior import Conditions, Timing

REPEATS = 3


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of a few calls, and the result."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


@torch.inference_mode()
def main() -> None:
    """Print the seconds of each part."""
    register_resolvers()
    nets: dict[str, Any] = {}
    with initialize_config_dir(CONF, version_base="1.3"):
        for model in ("vqvae", "low_prior", "up_prior"):
            cfg = compose("train", [f"model={model}", "paths.output=x", *sys.argv[1:]])
            nets[model] = instantiate(cfg.model.net).eval()
    codec, samples = nets["vqvae"], int(cfg.data.num_samples)
    wav = torch.randn(1, 1, samples) * 0.1
    codec.initialise_from([torch.randn(1, samples) * 0.1 for _ in range(8)])
    timing = Timing(torch.tensor([160000.0]), torch.zeros(1), torch.tensor([float(samples)]))
    seconds = {}
    seconds["encode"], codes = timed(lambda: codec.encode(wav))
    seconds["decode"], _ = timed(lambda: decode_wave(codec, codes["up"][0], "up"))
    options = SamplingOptions(2.0)
    drawn: dict[str, torch.Tensor] = {}
    for level in ("low", "up"):
        decoder = make_decoder(nets[f"{level}_prior"])
        conditions = Conditions(torch.randn(1, 1, cfg.encoder.dim), timing, drawn.get("low"))
        uniform = uniforms([1], decoder.context_length, level, shape=decoder.code_shape)

        def draw(decoder=decoder, conditions=conditions, uniform=uniform) -> torch.Tensor:
            state = decoder.start(conditions, uniform, options)
            found = state.steps().clone()
            state.release()
            return found

        seconds[level], drawn[level] = timed(draw)
    total = seconds["low"] + seconds["up"] + seconds["decode"]
    length = samples / cfg.get("sample_rate", 16000)
    rows = [*seconds.items(), ("generate (low + up + decode)", total)]
    sys.stdout.write(f"{length:.3f} s of audio, {torch.get_num_threads()} threads\n")
    for name, value in rows:
        sys.stdout.write(f"{name:30} {value:8.3f} s   {length / value:7.1f} x real time\n")


if __name__ == "__main__":
    main()
