"""The server of the web page: loads the model, and answers until the command is interrupted."""

import hmac
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from im2wav.decoding.sampler import SamplingOptions, given_sampling
from im2wav.inference.command import load_model
from im2wav.system import report_progress
from im2wav.webpage.service import AudioService, Limits

log = logging.getLogger(__name__)
PASSWORD = "IM2WAV_PASSWORD"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LONGEST_BODY = 1e6  # bytes of a request that is no upload
SESSIONS = 200  # users whose latest results are kept
# routes of Gradio that fetch addresses or files of others for a browser, or write files that are never deleted
CLOSED = ("/gradio_api/file=http", "/gradio_api/proxy=", "/gradio_api/deep_link", "/custom_component", "/monitoring")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; form-action 'self'; frame-ancestors 'self'"
)
Scope = dict[str, Any]


class Guard:
    """ASGI middleware: limits the size of requests, closes routes, and forbids the page to load from other servers.

    Args:
        app: what it protects.
        max_upload: bytes of an uploaded file.
        frames: addresses of other pages that may show this one in a frame.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_upload: float, frames: Sequence[str] = ()):
        self.app, self.max_upload, self.policy = app, max_upload, " ".join([POLICY, *frames])

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path, size = str(scope["path"]), headers.get(b"content-length", b"0").decode("latin-1")
        limit = self.max_upload + 1e5 if path.startswith("/gradio_api/upload") else LONGEST_BODY
        if path.lower().startswith(CLOSED):
            await _reply(send, 404, "no such page")
        elif b"transfer-encoding" in headers or not size.isdecimal():
            await _reply(send, 411, "the size of the request is missing")
        elif int(size) > limit:
            await _reply(send, 413, f"the request is larger than {limit / 2**20:.3g} MiB")
        else:
            await self.app(scope, receive, _with_policy(send, self.policy))


def _with_policy(send: Any, policy: str) -> Any:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
        await send(message)

    return sending


async def _reply(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def read_password(path: str | None) -> str | None:
    """The password: the first line of a file, else that of IM2WAV_PASSWORD; None if there is neither.

    Raises:
        ValueError: the file is empty.
        OSError: it cannot be read.
    """
    if path is None:
        return os.environ.get(PASSWORD) or None
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise ValueError(f"password_file={path}: its first line is empty; write the password there")
    return lines[0].strip()


def check_port(port: int | None) -> None:
    """Reject a port that is in use.

    Raises:
        ValueError: it is.
    """
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port={port}: {error.strerror}; set another one, or null for a free one") from error


@contextmanager
def gradio_folder() -> Any:
    """A temporary folder for all files of the page. Gradio serves files of this folder only.

    Settings of Gradio in the environment, which could open other folders or the network, have no effect.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="im2wav-web-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_EXAMPLES_CACHE"] = str(root), str(root / "examples")
        yield root


def adapter_names(paths: Sequence[str]) -> dict[str, str]:
    """Adapters by their file names, which the page shows instead of paths.

    Raises:
        ValueError: two have the same name.
    """
    names = {Path(path).name: path for path in paths}
    if len(names) < len(paths):
        raise ValueError(f"adapter={','.join(paths)}: two files have the same name; rename one")
    return names


def make_service(cfg: DictConfig, build: Callable[..., Any], folder: Path) -> AudioService:
    """Load the model, and generate once, so that the first request is fast.

    Args:
        cfg: options of conf/web.yaml.
        build: instantiates a config node.
        folder: see `gradio_folder`.

    Raises:
        ValueError: options out of range, or a model that cannot be loaded.
    """
    sampling = given_sampling(cfg.sampler)
    SamplingOptions().updated(sampling)
    encoders: list[Any] = []

    def shared_encoder(node: Any) -> Any:
        if not encoders:
            encoders.append(build(node))
        return encoders[0]

    def load(adapters: list[str]) -> Any:
        return load_model(OmegaConf.merge(cfg, {"adapters": adapters}), shared_encoder, cfg.device)  # type: ignore

    limits = Limits(cfg.max_seconds, cfg.max_video * 60, cfg.max_drafts)
    service = AudioService(load, adapter_names(cfg.adapters), limits, folder, sampling)
    log.info("loading the model and generating once, so that the first request is fast")
    for _ in service.model().stream(Image.new("RGB", (64, 64)), **sampling):
        break
    return service


def open_page(cfg: DictConfig, service: AudioService, password: str | None = None) -> Any:
    """Start the server in a thread.

    Args:
        cfg: options of conf/web.yaml.
        service: answers the requests of the page.
        password: of the page; None for none.

    Returns:
        The running `gradio.Blocks`; `local_url` is its address, and `close()` stops it.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from im2wav.webpage.layout import CSS, WebPage

    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own server whether it runs
    max_upload = int(cfg.max_upload * 2**20)
    guard = Middleware(Guard, max_upload=max_upload, frames=list(cfg.frames))
    page = WebPage(service, Path(cfg.pretrained or cfg.run_name or "starter").name, cfg.keep * 60).build()
    page.queue(max_size=cfg.max_queue, api_open=False)
    page.launch(
        server_name=cfg.host,
        server_port=cfg.port,
        auth=None if password is None else (lambda _, given: hmac.compare_digest(given.encode(), password.encode())),
        auth_message="Any user name, and the password of this page.",
        max_file_size=max_upload,
        app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
        state_session_capacity=SESSIONS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    return page


def serve(cfg: DictConfig, build: Callable[..., Any]) -> None:
    """Serve the page until the command is interrupted.

    Args:
        cfg: options of conf/web.yaml.
        build: instantiates a config node.

    Raises:
        ValueError: Gradio is not installed, a port that is in use, or see `make_service`.
    """
    password = read_password(cfg.password_file)
    check_port(cfg.port)
    with gradio_folder() as folder:
        try:
            import gradio  # noqa: F401, here: it reads the environment
        except ImportError as error:
            raise ValueError(f"the web page needs Gradio ({error}): pip install 'im2wav[web]'") from error
        page = open_page(cfg, make_service(cfg, build, folder), password)
        if cfg.host not in LOOPBACK and password is None:
            log.warning("warning: everyone in this network can open the page: set %s, or password_file=FILE", PASSWORD)
        log.info("\nThe page is at %s\nCtrl-C stops it.", page.local_url)
        try:
            with report_progress(lambda: "the page is closed, its files are deleted"):
                threading.Event().wait()
        finally:
            page.close(verbose=False)
