import pytest

from im2wav.media.playing import play


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An otherwise empty PATH, and a function that puts a program on it."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return install


def test_the_first_player_that_works_gets_the_file(programs, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs("paplay", "echo no sound card >&2; exit 1")
    programs("aplay", f'echo "$@" > {tmp_path}/played')
    play((tmp_path / "-a.wav").relative_to(tmp_path))
    assert (tmp_path / "played").read_text() == f"-q {tmp_path}/-a.wav\n"
    assert not caplog.records


@pytest.mark.parametrize(
    ("player", "reason"),
    [(None, "none of afplay, pw-play"), ("aplay", "aplay: no sound card"), ("ffplay", "ffplay: no")],
)
def test_audio_that_cannot_be_played_is_a_warning(programs, tmp_path, caplog, player, reason):
    if player:
        programs(player, "echo no sound card >&2; exit 1")
    play(tmp_path / "a.wav")
    assert f"{tmp_path / 'a.wav'} could not be played ({reason}" in caplog.text
