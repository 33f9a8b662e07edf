"""Make official.npz of the golden data in ../shared (README.md says what is in it).

python tests/golden/make.py ../shared/golden/tiny
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from archive import write

from im2wav.official.conversion import read

Tensors = dict[str, tuple[np.ndarray, float]]

SAMPLES, DECODED = 1536, 1024  # samples given to the encoder; of the decoded wave compared
POSITIONS = {"low": 40, "up": 72}  # more than two blocks of 16; one block of 64 and a part of the next
SHORT = 12  # positions of which conditions are compared, and logits that only the last positions can tell wrong
# steps in a standard deviation of a tensor, as a power of two: the least that keeps outputs within 1e-4
BITS = {"vqvae": 13.5, "low": 13.0, "up": 12.5}
HPS = (
    *("sample_length", "sr", "levels", "level", "downs_t", "strides_t", "hvqvae_multipliers", "revival_threshold"),
    *("emb_width", "l_bins", "l_mu", "depth", "width", "m_conv", "dilation_growth_rate", "dilation_cycle"),
    *("vqvae_reverse_decoder_dilation", "use_bottleneck", "prior", "n_ctx", "prior_depth", "prior_width", "heads"),
    *("blocks", "m_attn", "m_mlp", "init_scale", "attn_order", "res_scale", "labels", "clip_emb", "video_clip_emb"),
    *("class_free_guidance_prob", "t_bins", "min_duration", "max_duration", "cond_depth", "cond_width", "cond_m_conv"),
    *("cond_dilation_growth_rate", "cond_dilation_cycle", "cond_res_scale", "cond_c_res", "merged_decoder"),
    *("single_enc_dec", "copy_input", "use_tokens", "y_cond_as_bias"),
)
TABLES = {"total": "total_length_emb", "absolute": "absolute_pos_emb", "relative": "relative_pos_emb"}


def rounded(array: Any, bits: float) -> tuple[np.ndarray, float]:
    """A tensor and its step: its standard deviation (of one value: its size) over 2^bits."""
    array = np.asarray(array, np.float32)
    size = array.std() if array.size > 1 and array.std() > 0 else np.abs(array).max()
    return array, float(size) / 2**bits


def output(array: Any) -> tuple[np.ndarray, float]:
    """A tensor that is compared, and its step: 4e-5 of the largest value, a fifth of the tolerance to either side."""
    array = np.asarray(array, np.float32)
    return array, 4e-5 * float(np.abs(array).max())


def whole(array: Any) -> tuple[np.ndarray, float]:
    """A tensor of whole numbers, kept exactly."""
    return np.asarray(array), 1.0


def weights(
    content: dict[str, Any], bits: float, rows: dict[str, list[int]], left_out: tuple[str, ...]
) -> tuple[Tensors, dict[str, Any]]:
    """Weights of an official file, without those whose names begin with `left_out`; of tables the `rows` alone."""
    kept: Tensors = {}
    shapes = {}
    for name, value in content["model"].items():
        shapes[name] = list(value.shape)
        if not name.startswith(left_out):
            kept[name] = rounded(value[rows[name]] if name in rows else value, bits)
    hps = {key: content["hps"][key] for key in HPS if key in content["hps"]}
    return kept, {"hps": hps, "shapes": shapes, "rows": {name: rows[name] for name in kept if name in rows}}


def codec_outputs(folder: Path) -> Tensors:
    """What the official VQ-VAE computes at the low level: of the first recording, its beginning."""
    file = np.load(folder / "vqvae_eval.npz")
    return {
        "x": rounded(file["x"][0, :SAMPLES, 0], 16),
        "codes": whole(file["codes_l1"][0]),
        "decode": output(file["decode_l1"][0, :DECODED, 0]),
    }


def low_outputs(folder: Path, model: dict[str, torch.Tensor]) -> Tensors:
    """What the official low prior computes for the first item."""
    file, n = np.load(folder / "low_eval.npz"), POSITIONS["low"]
    image_map = {key: model[f"y_emb.clip_map.sequential.{key}"].numpy() for key in ("0.weight", "0.bias", "3.weight")}
    mean = file["y"][0, :, 3:].astype(np.float64).mean(0)
    return {
        "timing": whole(file["y"][0, 0, :3]),
        "start_emb": rounded(file["label.start_emb"][0, 0], 16),
        "video_emb": rounded(file["label.video_emb"][0], 16),
        "x_cond": output(file["label.x_cond"][0, :SHORT]),
        "z": whole(file["z"][0, :n]),
        "label.logits": output(file["label.forward_logits"][0, :n]),
        "null.logits": output(file["null.forward_logits"][0, n - SHORT : n]),
        "greedy.codes": whole(file["greedy.codes"][0, :n]),
        # one output of the image map: its first layer applied to the mean embedding without the bias, and the rest
        "map.projected": rounded(image_map["0.weight"].astype(np.float64) @ mean, 13),
        "map.0.bias": rounded(image_map["0.bias"], 13),
        "map.3.weight": rounded(image_map["3.weight"][:1], 13),
        "map.3.bias": rounded(model["y_emb.clip_map.sequential.3.bias"][:1], 16),
    }


def up_outputs(folder: Path) -> Tensors:
    """What the official up prior computes for the first item."""
    file, n = np.load(folder / "up_eval.npz"), POSITIONS["up"]
    return {
        "z_cond": whole(file["z_cond"][0]),
        "x_cond": output(file["label.x_cond"][0, :SHORT]),
        "layer_4": rounded(file["label.block_outputs"][4, 0, :n], 13.5),
        "logits": output(file["label.forward_logits"][0, n - SHORT : n]),
    }


def function_tables(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Frames by position, timing bins, and filtered logits."""
    functions = json.loads((folder / "functions.json").read_text())
    filters = np.load(folder / "filter_logits.npz")
    tensors = {f"frames.{key}": whole(frames) for key, frames in functions["token2frame"].items()}
    for i, case in enumerate(functions["timing_bins"]):
        for name in ("absolute", "relative"):
            tensors[f"timing.{i}.{name}"] = whole(case[f"{name}_bins"])
    tensors["logits"] = rounded(filters["logits"], 18)
    for name in ("k5_p0.0", "k0_p0.5", "k0_p0.9"):
        tensors[f"kept.{name}"] = whole(np.isfinite(filters[name]).astype(np.int64))
    keys = ("total", "offset", "length", "n_time", "total_bin")
    return tensors, {"timing": [{key: case[key] for key in keys} for case in functions["timing_bins"]]}


def rows_of_the_tables(low: Any, timing: np.ndarray) -> dict[str, list[int]]:
    """Which rows of its timing tables the low prior reads at the compared positions."""
    from im2wav.prior import Timing

    bins = low.net.conditioner.timing.bins_of(Timing(*torch.tensor(timing)[:, None]), low.net.context_length)
    read = {name: sorted(set(index[0, : POSITIONS["low"]].tolist())) for name, index in bins.items()}
    return {f"y_emb.{TABLES[name]}.emb.weight": rows for name, rows in read.items()}


def main(folder: Path, target: Path) -> None:
    """Write the golden file."""
    from im2wav.official import convert_checkpoint

    files = {name: read(folder / f"{name}.pth.tar") for name in ("vqvae", "low", "up")}
    timing = np.load(folder / "low_eval.npz")["y"][0, 0, :3]
    position = "prior.pos_emb.pos_emb"
    low_rows = rows_of_the_tables(convert_checkpoint(folder / "low.pth.tar"), timing)
    low_rows[position] = list(range(POSITIONS["low"]))
    maps = ("y_emb.clip_map", "y_emb.video_map", "prior.x_out")
    earlier = tuple(f"prior.transformer._attn_mods.{i}." for i in range(5))
    other_level = ("encoders.0", "decoders.0", "bottleneck.level_blocks.0")
    write(
        target,
        {
            "vqvae": weights(files["vqvae"], BITS["vqvae"], {}, other_level),
            "low": weights(files["low"], BITS["low"], low_rows, maps),
            "up": weights(files["up"], BITS["up"], {}, (*maps, position, *earlier)),
            "vqvae_outputs": (codec_outputs(folder), {}),
            "low_outputs": (low_outputs(folder, files["low"]["model"]), {}),
            "up_outputs": (up_outputs(folder), {}),
            "functions": function_tables(folder),
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("official.npz"))
