"""Convert checkpoints of the official Im2Wav (github.com/RoySheffer/im2wav).

An official file is a dict of `hps` (every hyper-parameter), `model` (the weights), `opt` and `step`. All sizes are
read from `hps`. Every weight is used exactly once; mismatching names are reported in an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from im2wav.checkpoint import Loaded
from im2wav.codec import LEVELS, AudioCodec
from im2wav.official.checkpoint_file import read
from im2wav.prior import Prior

KINDS = {"vqvae": AudioCodec, "low_prior": Prior, "up_prior": Prior}

# required values of `hps`; other values change the network and no released checkpoint uses them
_REQUIRED: dict[str, dict[str, Any]] = {
    "vqvae": {"levels": 2, "vqvae_reverse_decoder_dilation": True, "use_bottleneck": True}
    | dict.fromkeys(("hvqvae_multipliers", "dilation_cycle")),
    "prior": {"levels": 2, "labels": True, "clip_emb": True, "attn_order": 2}
    | dict.fromkeys(("res_scale", "cond_res_scale", "merged_decoder", "single_enc_dec"), False)
    | dict.fromkeys(("copy_input", "y_cond_as_bias", "use_tokens"), False),
}


@dataclass(frozen=True)
class OfficialCheckpoint(Loaded):
    """A converted checkpoint, and the step of its training."""

    step: int = 0


def kind_of(hps: Mapping[str, Any]) -> str:
    """Kind of the model of a file, from its hyperparameters."""
    if not hps.get("prior"):
        return "vqvae"
    return "low_prior" if hps["level"] == hps["levels"] - 1 else "up_prior"


def _check_supported(hps: Mapping[str, Any], kind: str) -> None:
    expected = _REQUIRED["vqvae" if kind == "vqvae" else "prior"]
    wrong = {k: hps[k] for k, v in expected.items() if k in hps and (hps[k] or None) != (v or None)}
    if wrong:
        raise ValueError(f"the {kind} uses {wrong}; supported: { ({k: expected[k] for k in wrong}) }")


def codec_config(hps: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `AudioCodec` for an official VQ-VAE."""
    return {
        "strides": [[stride] * count for count, stride in zip(hps["downs_t"], hps["strides_t"], strict=True)],
        "width": hps["width"],
        "depth": hps["depth"],
        "code_dim": hps["emb_width"],
        "codebook_size": hps["l_bins"],
        "dilation_growth": hps["dilation_growth_rate"],
        "expansion": hps["m_conv"],
        "codebook": {
            "decay": hps["l_mu"],
            "restart_threshold": hps["revival_threshold"],
            "reset_usage_on_restart": False,
        },
    }


def prior_config(hps: Mapping[str, Any], kind: str, clip_dim: int, map_width: int) -> dict[str, Any]:
    """Arguments of `Prior` for an official prior; sizes of its CLIP MLPs are constants of the official code."""
    conditioning: dict[str, Any] = {
        "clip_dim": clip_dim,
        "map_width": map_width,
        "frames": bool(hps["video_clip_emb"]),
        "timing": kind == "low_prior",
        "guidance": hps["class_free_guidance_prob"] >= 0,
        "sample_rate": hps["sr"],
        "timing_bins": hps["t_bins"],
    }
    if kind == "low_prior":
        if hps["min_duration"] is not None and hps["max_duration"] is not None:
            conditioning["total_range"] = [hps["min_duration"], hps["max_duration"]]
    else:
        above = hps["level"] + 1
        conditioning["upsampler"] = {
            "strides": [hps["strides_t"][above]] * hps["downs_t"][above],
            "width": hps["cond_width"],
            "depth": hps["cond_depth"],
            "dilation_growth": hps["cond_dilation_growth_rate"],
            "dilation_cycle": hps["cond_dilation_cycle"],
            "expansion": hps["cond_m_conv"],
        }
    return {
        "codebook_size": hps["l_bins"],
        "context_length": hps["n_ctx"],
        "transformer": {
            "width": hps["prior_width"],
            "depth": hps["prior_depth"],
            "heads": hps["heads"],
            "blocks": hps["blocks"],
            "attention_ratio": hps["m_attn"],
            "mlp_ratio": hps["m_mlp"],
            "init_scale": hps["init_scale"],
        },
        "conditioning": conditioning,
    }


_CONV = {"dilated": "1", "pointwise": "3"}
_LAYER = {
    "norm_attention": "ln_0",
    "norm_mlp": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
_MAPS = {"start_map": "clip_map", "frame_map": "video_map"}
_TABLES = {"total": "total_length_emb", "absolute": "absolute_pos_emb", "relative": "relative_pos_emb"}


def codec_name(name: str, strides: list[list[int]]) -> str | None:
    """Official name of a codec parameter; None if official files do not contain it."""
    module, level_name, *rest = name.split(".")
    level = LEVELS.index(level_name)
    if module == "codebooks":
        return f"bottleneck.level_blocks.{level}.k" if rest == ["codebook"] else None
    if module == "encoders":
        group, part, *rest = rest
        start = f"encoders.{level}.level_blocks.{group}.model"
        if part == "out":
            return f"{start}.{len(strides[int(group)])}.{rest[0]}"
        stage, half, *rest = rest
        return f"{start}.{stage}.0.{rest[0]}" if half == "0" else f"{start}.{stage}.1.model.{_block(rest)}"
    if rest[0] == "out":
        return f"decoders.{level}.out.{rest[1]}"
    start = f"decoders.{level}.level_blocks.{level - int(rest[1])}.model"
    return f"{start}.{_upsample(rest[2:], 'model')}"


def _block(rest: list[str]) -> str:
    """Official name in a stack of residual blocks, from [index, convolution, weight or bias]."""
    return f"{rest[0]}.model.{_CONV[rest[1]]}.{rest[2]}"


def _upsample(rest: list[str], stack: str) -> str:
    """Official name in an `UpsampleStack`; `stack` is the name of its residual stacks."""
    if rest[0] == "inp":
        return f"0.{rest[1]}"
    stage, half, *rest = rest[1:]
    return f"{int(stage) + 1}.1.{rest[0]}" if half == "1" else f"{int(stage) + 1}.0.{stack}.{_block(rest)}"


def prior_name(name: str, checkpointed: bool) -> str:
    """Official name of a parameter of `Prior`.

    With checkpointing of the official conditioner (`cond_c_res`), its blocks have other names.
    """
    module, *rest = name.split(".")
    if name == "code_embedding.weight":
        return "prior.x_emb.weight"
    if name == "position_embedding":
        return "prior.pos_emb.pos_emb"
    if module == "transformer":
        parameter = rest[3] if rest[2].startswith("norm") else rest[3][0]
        return f"prior.transformer._attn_mods.{rest[1]}.{_LAYER[rest[2]]}.{parameter}"
    part, *rest = rest
    if part in _MAPS:
        return f"y_emb.{_MAPS[part]}.sequential.{rest[0]}.{rest[1]}"
    if part == "timing":
        return f"y_emb.{_TABLES[rest[1]]}.emb.weight"
    if part == "upsampler":
        if rest[0] == "stack":
            blocks = _upsample(rest[1:], "blocks" if checkpointed else "model")
            return f"conditioner_blocks.0.cond.model.{blocks}"
        return f"conditioner_blocks.0.{'x_emb' if rest[0] == 'embedding' else 'ln'}.{rest[1]}"
    return {"null_start": "y_emb.null_CLIP", "null_frame": "y_emb.null_video_CLIP"}[part]


def transpose_linear(official: str, value: Tensor) -> Tensor:
    """Official linear layers are `Conv1D`s, whose weights `.w` are stored transposed."""
    return value.t() if official.endswith(".w") else value


def translate(net: nn.Module, given: Mapping[str, Tensor], hps: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """Rename official weights and convert them to fp32.

    Raises:
        ValueError: keys are missing, unexpected or have another shape; the message lists them.
    """
    ours = net.state_dict()
    if kind == "vqvae":
        strides = codec_config(hps)["strides"]
        names = {name: official for name in ours if (official := codec_name(name, strides))}
    else:
        names = {name: prior_name(name, bool(hps["cond_c_res"])) for name in ours}
    found, misshapen = {}, []
    for name, official in names.items():
        if official in given:
            found[name] = transpose_linear(official, given[official]).float().contiguous()
            if found[name].shape != ours[name].shape:
                shape = tuple(transpose_linear(official, ours[name]).shape)
                misshapen.append(f"{official} {tuple(given[official].shape)} instead of {shape}")
    # the output layer is tied to the code embedding; the null frame is unused without frames
    unused = {"prior.x_out.weight"} | (set() if hps.get("video_clip_emb") else {"y_emb.null_video_CLIP"})
    if "prior.x_out.weight" in given and not torch.equal(given["prior.x_out.weight"], given["prior.x_emb.weight"]):
        misshapen.append("prior.x_out.weight differs from prior.x_emb.weight")
    expected = set(names.values())
    problems = {
        "missing": sorted(expected - given.keys()),
        "unexpected": sorted(given.keys() - expected - unused),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(listed)}" for what, listed in problems.items() if listed)
        raise ValueError(f"the weights do not match the {kind} of its hps: {text}")
    return found


def _restore_codebooks(state: dict[str, Tensor], codec: AudioCodec, hps: Mapping[str, Any]) -> None:
    """Add the EMA buffers that official files lack, as the official trainer restores them on one process."""
    for level in LEVELS:
        start = f"codebooks.{level}"
        usage = (hps["sample_length"] // codec.hop_lengths[level]) / codec.codebook_size
        state[f"{start}.code_usage"] = torch.full((codec.codebook_size,), float(usage))
        state[f"{start}.code_sum"] = state[f"{start}.codebook"] * state[f"{start}.code_usage"][:, None]
        state[f"{start}.initialised"] = torch.tensor(True)


def build_net(content: Mapping[str, Any]) -> tuple[str, dict[str, Any], nn.Module]:
    """Kind, arguments and network (without weights) of the content of an official file.

    Raises:
        ValueError: its `hps` are incomplete, of another type, or not supported.
    """
    hps, given = content["hps"], content["model"]
    try:
        kind = kind_of(hps)
        _check_supported(hps, kind)
        if kind == "vqvae":
            config = codec_config(hps)
        else:
            map_width, clip_dim = given["y_emb.clip_map.sequential.0.weight"].shape
            config = prior_config(hps, kind, clip_dim, map_width)
        with torch.device("meta"):
            return kind, config, KINDS[kind](**config)
    except KeyError as error:
        raise ValueError(f"not a complete official checkpoint: it lacks {error}") from error
    except (TypeError, IndexError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise ValueError(f"no network can be built from its hps: {type(error).__name__}: {error}") from error


def convert_checkpoint(path: str | Path) -> OfficialCheckpoint:
    """Load an official file and build its network in eval mode.

    Raises:
        ValueError: not an official file, or its weights do not match.
    """
    content = read(path)
    hps = content["hps"]
    try:
        kind, config, net = build_net(content)
        state = translate(net, content["model"], hps, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path} is damaged: {', '.join(broken)} contain non-finite values; download it again")
    if isinstance(net, AudioCodec):
        _restore_codebooks(state, net, hps)
    net.load_state_dict(state, assign=True)
    # official clips have 10 s; their frame rate and CLIP weights are not recorded
    data = {"encoder": "clip_vit_b32", "dim": 512, "weights_sha256": None, "fps": 30.0, "sample_rate": hps["sr"]}
    data["seconds"] = 10.0
    losses = hps.get("bandwidth") if kind == "vqvae" else None
    bandwidth = {name: float(losses[name]) for name in ("l1", "l2", "spec")} if losses else None
    net = net.eval().requires_grad_(False)
    return OfficialCheckpoint(net, kind, config, data, bandwidth=bandwidth, step=int(content.get("step") or 0))
