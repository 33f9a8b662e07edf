"""Play an audio file with a program of the machine."""

import logging
import shutil
import subprocess
from pathlib import Path

log = logging.getLogger(__name__)
# in the order in which they are looked for: macOS, PipeWire, PulseAudio, ALSA, ffmpeg
PLAYERS = (
    ("afplay",),
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)


def play(path: Path) -> None:
    """Play a file until it ends; warn if no player is installed, or if all fail, as without a sound card."""
    reason = f"none of {', '.join(name for name, *_ in PLAYERS)} is installed"
    for name, *options in PLAYERS:
        program = shutil.which(name)
        if program is None:
            continue
        command = [program, *options, str(path.resolve())]  # an absolute path is never read as an option
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode == 0:
            return
        reason = f"{name}: {(result.stderr.strip().splitlines() or [f'exit code {result.returncode}'])[-1]}"
    log.warning("play=true: %s could not be played (%s)", path, reason)
