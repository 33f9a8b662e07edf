"""Move codebooks from the up prior to the low prior of a trained model: `widen.py CODEC LOW NUMBER OUT`.

CODEC and LOW are .safetensors files, with fewer low codebooks than NUMBER. Writes OUT/codec.safetensors, the same codec
whose level `low` has NUMBER codebooks and whose decoder can add noise, and OUT/low.safetensors, the same prior. What is
new has untrained weights, to begin a training with.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from im2wav.codec import ResidualCodec

NOISE_BANDS = 12
STD = 0.02  # of untrained weights; embeddings of the heads have 0.1, as in `im2wav.prior.depth`


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The metadata and the tensors of a network."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["im2wav"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def widen_prior(state: dict[str, Tensor], old: int, new: int, size: int) -> None:
    """Add the weights of codebooks `old` to `new` - 1, of `size` codes, to the state of a low prior."""
    draw = torch.Generator().manual_seed(0)
    embedding, width = state["code_embedding.weight"], state["code_embedding.weight"].shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    state["code_embedding.weight"] = torch.cat([embedding, STD * normal((new - old) * size, width)])
    for number in range(old, new):
        for name in [name for name in state if name.startswith(f"heads.heads.{old - 1}.")]:
            value = state[name].clone()
            if name.endswith("out.weight"):
                value = STD * normal(*value.shape)
            elif name.endswith("out.bias"):
                value.zero_()
            state[name.replace(f"heads.heads.{old - 1}.", f"heads.heads.{number}.")] = value
        state[f"heads.embeddings.{number - 1}.weight"] = 0.1 * normal(size, width)


def main() -> None:
    """Write both files."""
    codec, low, number, out = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    out.mkdir(parents=True, exist_ok=True)
    about, state = read(codec)
    about["config"] |= {"low_codebooks": number, "noise_bands": NOISE_BANDS}
    untrained = ResidualCodec(**{name: value for name, value in about["config"].items() if name != "_target_"})
    state |= {name: value for name, value in untrained.state_dict().items() if name.startswith("decoder.share.")}
    save_file(state, out / "codec.safetensors", {"im2wav": json.dumps(about)})
    about, state = read(low)
    widen_prior(state, about["config"]["codebooks"], number, about["config"]["codebook_size"])
    about["config"]["codebooks"] = number
    save_file(state, out / "low.safetensors", {"im2wav": json.dumps(about)})


if __name__ == "__main__":
    main()
