"""Networks of each suite."""

from pathlib import Path

from im2wav.evaluation.network import Network

SUITES = ("offline", "paper", "all")


def load_networks(suite: str, weights_dir: Path | None, check: bool = True) -> list[Network]:
    """The networks of a suite.

    Args:
        suite: `offline`, `paper` or `all`.
        weights_dir: folder of the weights files of `paper`.
        check: reject files whose sha256 differs from the published one.

    Raises:
        ValueError: unknown suite, or weights that are missing or wrong.
    """
    if suite not in SUITES:
        raise ValueError(f"suite={suite}: expected one of {', '.join(SUITES)}")
    networks: list[Network] = []
    if suite in ("offline", "all"):
        from im2wav.evaluation.yamnet import Yamnet

        networks.append(Yamnet())
    if suite in ("paper", "all"):
        from im2wav.evaluation.network_weights import check_folder
        from im2wav.evaluation.passt import Passt
        from im2wav.evaluation.vggish import Vggish
        from im2wav.evaluation.wav2clip import Wav2Clip

        folder = check_folder(weights_dir)
        networks += [Passt(folder, check), Vggish(folder, check), Wav2Clip(folder, check)]
    return networks
