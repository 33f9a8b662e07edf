"""A server that never answers is found out within seconds."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import open_clip
import pytest
import safetensors.torch
from huggingface_hub import constants

from im2wav.hub import find_folder
from im2wav.media.encoder import ClipEncoder
from im2wav.network import is_reachable
from im2wav.training.loggers import wandb_logger


@pytest.fixture
def silent():
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering():
    """A function: a status -> the address of a server that answers with it."""

    with contextlib.ExitStack() as stack:

        def start(status: int) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_HEAD(self):
                    self.send_response(status)
                    self.end_headers()

                def log_message(self, *_):
                    pass

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


def test_a_silent_server_is_not_reachable_after_the_time_given(silent):
    start = time.monotonic()
    assert not is_reachable(silent, 0.3)
    assert time.monotonic() - start < 1


def test_names_that_do_not_resolve_and_closed_ports_are_not_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not is_reachable(f"http://127.0.0.1:{port}", 1)
    assert not is_reachable("http://no.such.host.invalid", 1)
    assert not is_reachable("nonsense", 1)


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (404, True), (401, True), (503, False)])
def test_any_answer_but_an_error_of_the_server_is_reachable(answering, status, reachable):
    assert is_reachable(answering(status)) is reachable


@pytest.fixture
def key(monkeypatch):
    """A W&B API key for a server whose address is given."""
    import wandb

    def use(server: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", server)
        wandb.teardown()  # settings are read once in a process

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    yield use
    monkeypatch.undo()
    wandb.teardown()


def test_wandb_with_a_key_but_no_answer_is_offline_within_seconds_and_says_so(silent, key, tmp_path, caplog):
    key(silent)
    start = time.monotonic()
    logger = wandb_logger(str(tmp_path), project="im2wav")
    assert time.monotonic() - start < 10
    assert logger._wandb_init["mode"] == "offline"
    assert f"no answer from {silent}: this run is logged offline" in caplog.text
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in caplog.text


def test_wandb_with_a_key_and_an_answer_is_online(answering, key, tmp_path):
    key(answering(404))
    assert wandb_logger(str(tmp_path), project="im2wav")._wandb_init["mode"] == "online"


def test_runs_of_a_sweep_agent_stay_online(silent, key, tmp_path, monkeypatch):
    key(silent)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert wandb_logger(str(tmp_path), project="im2wav")._wandb_init["mode"] == "online"


def test_an_error_of_wandb_is_one_line(answering, key, tmp_path, monkeypatch):
    import wandb

    def reject(**_):
        raise wandb.errors.AuthenticationError("API key is invalid\nmore")

    key(answering(404))
    monkeypatch.setattr(wandb, "init", reject)
    logger = wandb_logger(str(tmp_path), project="im2wav")
    with pytest.raises(ValueError, match=r"^wandb: API key is invalid; run `wandb login`, or set WANDB_MODE=offline$"):
        _ = logger.experiment


@pytest.fixture
def hub(silent, tmp_path, monkeypatch):
    """A function: repository and file -> its place in the Hub's cache; the Hub itself drops every request."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)

    def place(repository: str, name: str):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        for path in (folder / "refs", folder / "snapshots" / "abc"):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("abc")
        return folder / "snapshots" / "abc" / name

    return place


def test_cached_clip_weights_load_without_a_request(hub, clip_file, monkeypatch):
    def request(*_, **__):
        raise AssertionError("a request")

    path, model = clip_file
    repository = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai")["hf_hub"].rstrip("/")
    safetensors.torch.save_file(model.state_dict(), hub(repository, "open_clip_model.safetensors"))
    monkeypatch.setattr(socket.socket, "connect", request)
    monkeypatch.setattr("im2wav.media.encoder.check_hub", request)
    assert ClipEncoder().weights_sha256 == ClipEncoder(weights=str(path)).weights_sha256


def test_clip_weights_that_are_not_cached_are_one_line_within_seconds(hub, silent):
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"\(ConnectionError: no answer from {silent}\): set encoder.weights=.* HF_HOME"
    ):
        ClipEncoder()
    assert time.monotonic() - start < 10


def test_a_cached_model_starts_and_another_is_one_line_where_the_hub_does_not_answer(hub, silent):
    config = hub("me/model", "config.json")
    config.write_text("{}")
    start = time.monotonic()
    assert find_folder("me/model") == config.parent
    with pytest.raises(ValueError, match=f"me/other is no folder, and .*ConnectionError: no answer from {silent}"):
        find_folder("me/other")
    assert time.monotonic() - start < 10
