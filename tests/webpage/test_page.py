"""The web page without a browser: answers, limits, errors, paths of the server, users in parallel."""

import io
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch

from conftest import ASSETS, config, tone, write_mp4, write_wav
from im2wav.cli import instantiate
from im2wav.media.mux import AacStream, aac_seconds
from im2wav.report.plots import waveform_image
from im2wav.webpage.service import CONTINUE, INPAINT, TEXT, VIDEO, AudioService, Form, Limits
from im2wav.webpage.serving import adapter_names, check_port, gradio_folder, make_service, open_page, read_password

gradio = pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")
OWL, COW = (str(ASSETS / "images" / f"{name}.jpg") for name in ("owl_03", "cow_04"))


@contextmanager
def opened(trained: Path, *options: str, password: str | None = None):
    """A running page of the tiny models, its service and its folder."""
    before = dict(os.environ)
    try:
        with gradio_folder() as folder:
            names = [
                f"paths.runs={trained}",
                "run_name=base",
                "device=cpu",
                "port=null",
                "max_seconds=2",
                "max_upload=1",
                *options,
            ]
            cfg = config("web", *names)
            service = make_service(cfg, instantiate, folder)
            page = open_page(cfg, service, password)
            try:
                yield page, service, folder
            finally:
                page.close(verbose=False)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def web(trained):
    os.environ["GRADIO_ALLOWED_PATHS"] = "/"  # of somebody's own Gradio app: without effect here
    try:
        with opened(trained) as (page, service, folder):
            yield page, service, folder
    finally:
        del os.environ["GRADIO_ALLOWED_PATHS"]
    assert not folder.exists()


@pytest.fixture(scope="module")
def service(web):
    """The service of the page, to be called without HTTP."""
    return web[1]


def values(**changed) -> list:
    """What a client sends: all fields of the form except `last`, which the server keeps."""
    form = replace(Form(guidance_scale=3, temperature=1, negative_scale=1), **changed)
    sent = [getattr(form, item.name) for item in fields(Form) if item.name != "last"]
    files = {item.name for item in fields(Form)} & {"photo", "video", "negative", "known"}
    names = [item.name for item in fields(Form) if item.name != "last"]
    return [client.handle_file(v) if n in files and v else v for n, v in zip(names, sent, strict=True)]


def ask(url: str, downloads: Path, **changed) -> tuple:
    return client.Client(url, download_files=str(downloads), verbose=False).predict(
        *values(**changed), api_name="/generate"
    )


def finish(run):
    """The answer of a run, and the pieces that it yields."""
    pieces = []
    while True:
        try:
            pieces.append(next(run))
        except StopIteration as finished:
            return finished.value, pieces


def test_a_photo_gives_audio_in_all_formats(web, service, tmp_path):
    import av

    page, *_ = web
    _, audio, spectrogram, _, files, note, *_ = ask(page.local_url, tmp_path, photo=OWL, seed=3, seconds=0.5)
    assert [Path(file).suffix for file in files] == [".wav", ".flac", ".mp3", ".mp4"]
    assert note == ""
    assert Path(spectrogram).is_file()
    expected = service.model().generate(OWL, seed=3, seconds=0.5).wav
    for file in (audio, *files[:2]):
        wav, rate = soundfile.read(file, dtype="float32")
        assert rate == 16000
        assert np.abs(wav - expected.numpy()).max() < 1e-4
    assert soundfile.info(files[2]).duration == pytest.approx(0.5, abs=0.2)
    with av.open(files[3]) as made:
        assert {stream.type for stream in made.streams} == {"video", "audio"}


def test_five_users_wait_and_none_fails(web, tmp_path):
    page, *_ = web
    with ThreadPoolExecutor(5) as users:
        photos = [OWL, COW] * 2 + [OWL]
        answers = list(users.map(lambda k: ask(page.local_url, tmp_path, photo=photos[k], seed=k % 2), range(5)))
    contents = [Path(answer[4][0]).read_bytes() for answer in answers]
    assert contents[0] == contents[2] == contents[4]  # a photo and a seed give the same audio to every user
    assert contents[1] == contents[3] != contents[0]


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.jpg").write_text("not an image")
    (folder / "notes.mp4").write_text("not a video")
    (folder / "notes.wav").write_text("no audio")
    write_mp4(folder / "hours.mp4", seconds=7200, fps=1, audio=False)
    write_wav(folder / "long.wav", tone(3.0))
    write_wav(folder / "short.wav", tone(0.5))
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "Choose a photo first"),
        ({"kind": VIDEO}, "Choose a video first"),
        ({"photo": "notes.jpg"}, r"unreadable image: notes\.jpg: cannot identify .* Use a photo as JPEG"),
        ({"kind": VIDEO, "video": "notes.mp4"}, r"unreadable video: notes\.mp4"),
        ({"kind": VIDEO, "video": "notes.jpg"}, r"notes\.jpg is not a video: use MP4"),
        ({"kind": VIDEO, "video": "hours.mp4"}, r"hours\.mp4 lasts 120\.0 minutes: at most 10 are allowed"),
        ({"photo": OWL, "seconds": 2.5}, "length=2.5: expected 0 to 2"),
        ({"photo": OWL, "seconds": -1}, "length=-1: expected 0 to 2"),
        ({"photo": OWL, "seed": None}, "seed=: expected 0"),
        ({"photo": OWL, "num_drafts": 9}, "drafts=9: expected 1 to 8"),
        ({"photo": OWL, "temperature": 0}, "temperature=0: expected more than 0"),
        ({"photo": OWL, "adapters": ["/etc/passwd"]}, "adapter /etc/passwd: expected"),
        ({"photo": OWL, "negative": "notes.jpg"}, r"unreadable image: notes\.jpg"),
        ({"photo": OWL, "negative": OWL, "negative_text": "a cow"}, "remove one of the two"),
        ({"photo": OWL, "negative_text": "a" * 301}, "has 301 characters: at most 300"),
        ({"photo": OWL, "task": CONTINUE}, "Continue: upload or record the audio first"),
        ({"photo": OWL, "task": CONTINUE, "known": "long.wav"}, r"long\.wav lasts 3 s: at most 2 s are allowed"),
        ({"photo": OWL, "task": CONTINUE, "known": "notes.wav"}, r"unreadable audio: notes\.wav"),
        ({"photo": OWL, "task": INPAINT, "known": "short.wav", "start": 0.4, "end": 0.2}, "within 0.50 s"),
        ({"kind": TEXT, "text": " "}, "Enter a text first"),
        ({"kind": TEXT, "text": "a dog barks"}, "encoder=efficientnet_lite2 encodes images only"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_requests_give_one_clear_message(service, bad, changed, message, tmp_path):
    changed = {key: bad.get(value, value) if isinstance(value, str) else value for key, value in changed.items()}
    with pytest.raises((ValueError, OSError)) as caught:
        finish(service.run(Form(**changed)))
    text = service.readable(caught.value).replace(str(Path(bad["notes.jpg"]).parent) + "/", "")
    assert re.search(message, text), text
    assert "\n" not in text


def test_errors_reach_the_user_without_paths_of_the_server(web, bad, tmp_path):
    page, _, folder = web
    for changed in ({"photo": bad["notes.jpg"]}, {"kind": VIDEO, "video": bad["hours.mp4"]}):
        with pytest.raises(Exception, match=r"notes\.jpg|hours\.mp4") as caught:
            ask(page.local_url, tmp_path, **changed)
        assert str(folder) not in str(caught.value)
    assert ask(page.local_url, tmp_path, photo=OWL)[4]  # the page still answers


def test_no_file_of_the_server_can_be_read(web, trained):
    page, *_ = web
    checkpoint = trained / "base" / "vqvae" / "last.ckpt"
    assert checkpoint.is_file()
    url = page.local_url.rstrip("/")
    places = [str(checkpoint), "/etc/passwd", "../../../../../../etc/passwd", "//etc/passwd", "pyproject.toml"]
    places += [f"{os.environ['GRADIO_TEMP_DIR']}/../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/"]
    for place in places:
        for route in ("file=", "file/", "proxy="):
            for quoted in (place, place.replace("/", "%2F").replace(".", "%2e")):
                answer = httpx.get(f"{url}/gradio_api/{route}{quoted}")
                assert answer.status_code in (400, 403, 404), (route, quoted)
                assert "root:" not in answer.text


class Recorder(BaseHTTPRequestHandler):
    """Another server, which the page must not call."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Path(OWL).read_bytes())


def answer_to(page, photo: dict) -> str:
    """The messages of the server to a request whose photo is this object."""
    data = [*values(), None]
    data[1] = {**photo, "meta": {"_type": "gradio.FileData"}}
    body = {"data": data, "fn_index": generate_index(page), "session_hash": "abc"}
    with httpx.Client(base_url=page.local_url, timeout=60) as session:
        assert session.post("/gradio_api/queue/join", json=body).status_code == 200
        return session.get("/gradio_api/queue/data", params={"session_hash": "abc"}).text


def test_a_request_can_name_neither_files_of_the_server_nor_other_servers(web):
    page, *_ = web
    other = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        for path in (OWL, "/etc/passwd", f"http://127.0.0.1:{other.server_port}/owl.jpg"):
            for file in ({"path": path}, {"path": path, "url": path}, {"url": path}):
                text = answer_to(page, file)
                assert '"success":false' in text, text
                assert "root:" not in text
        assert Recorder.asked == []
    finally:
        other.shutdown()
    with Path(OWL).open("rb") as file:
        (path,) = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": file}).json()
    assert '"success":true' in answer_to(page, {"path": path})  # an uploaded file, in the same request


def generate_index(page) -> int:
    return next(k for k, one in enumerate(page.config["dependencies"]) if one["api_name"] == "generate")


def test_large_requests_are_rejected(web):
    page, _, folder = web
    url = page.local_url.rstrip("/")
    before = sum(1 for _ in folder.rglob("*"))
    for size, status in ((50_000_000, 413), (900_000, 200)):
        files = {"files": ("photo.jpg", io.BytesIO(b"\xff" * size))}
        assert httpx.post(f"{url}/gradio_api/upload", files=files).status_code == status
    assert sum(1 for _ in folder.rglob("*")) == before + 2  # one file, in its folder
    assert httpx.post(f"{url}/gradio_api/queue/join", content=b"[" * 2_000_000).status_code == 413
    streamed = httpx.post(f"{url}/gradio_api/upload", content=(b"x" for _ in range(3)))  # without its size
    assert streamed.status_code == 411


def test_a_video_gets_audio_of_its_length(service, tmp_path):
    clip = write_mp4(tmp_path / "clip.mp4", seconds=1.0)
    answer, _ = finish(service.run(Form(kind=VIDEO, video=str(clip))))
    assert len(answer.audio.wav) == pytest.approx(16000, abs=800)
    assert answer.files[-1].suffix == ".mp4"
    longer = write_mp4(tmp_path / "longer.mp4", seconds=3.0)
    answer, _ = finish(service.run(Form(kind=VIDEO, video=str(longer))))
    assert len(answer.audio.wav) == 32000
    assert "first 2 s" in answer.note


def test_a_chosen_draft_is_refined(service):
    answer, pieces = finish(service.run(Form(photo=OWL, num_drafts=3, seed=4)))
    assert pieces == []
    assert len(answer.drafts) == 3
    assert answer.audio.request.seed == answer.drafts[0].seed
    chosen = answer.drafts[2]
    refined, pieces = finish(service.run(answer.form, chosen.seed))
    assert torch.equal(torch.cat(pieces), refined.audio.wav)
    assert torch.equal(refined.audio.wav, service.model().generate(OWL, seed=chosen.seed).wav)
    low, _ = soundfile.read(chosen.path)
    assert len(low) == len(refined.audio.wav)


def test_inpainting_keeps_the_rest_of_the_latest_result(service):
    first, _ = finish(service.run(Form(photo=OWL, seed=1, seconds=1.0)))
    form = Form(photo=OWL, seed=2, task=INPAINT, known=str(first.files[0]), start=0.4, end=0.6, last=first)
    second, _ = finish(service.run(form))
    kept = torch.ones(16000, dtype=torch.bool)
    kept[6000:10000] = False
    assert torch.allclose(first.audio.wav[kept][:5000], second.audio.wav[kept][:5000], atol=1e-5)
    codes = [answer.audio.codes["low"] for answer in (first, second)]
    inside = slice(int(0.4 * 16000) // 32, int(0.6 * 16000) // 32)
    assert torch.equal(codes[0][: inside.start], codes[1][: inside.start])
    assert torch.equal(codes[0][inside.stop + 1 :], codes[1][inside.stop + 1 :])
    assert not torch.equal(codes[0][inside], codes[1][inside])
    assert second.form.last.form.last is None  # earlier results are not kept


def test_audio_is_continued_from_the_chosen_second(service, tmp_path):
    prompt = write_wav(tmp_path / "prompt.wav", tone(1.0))
    form = Form(photo=OWL, task=CONTINUE, known=str(prompt), end=0.5)
    answer, _ = finish(service.run(form))
    assert len(answer.audio.wav) == round((0.5 + service.model().window) * 16000)
    known = service.model().networks.encode(service.read_known(str(prompt))[0][:8000], pad=False)["low"]
    assert torch.equal(answer.audio.codes["low"][: len(known)], known)
    whole, _ = finish(service.run(replace(form, end=0)))
    assert len(whole.audio.wav) == round((1.0 + service.model().window) * 16000)


def test_pieces_of_aac_are_one_stream():
    import av

    wav = torch.from_numpy(tone(1.3)).float()
    encoder = AacStream(16000)
    parts = [encoder.encode(piece) for piece in (*wav.split(7000), None)]
    assert all(parts)
    assert sum(aac_seconds(part, 16000) for part in parts) == pytest.approx(1.3, abs=0.2)
    with av.open(io.BytesIO(b"".join(parts))) as made:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in made.decode(audio=0)])
    level = np.sqrt(np.convolve(decoded**2, np.ones(320) / 320, "valid"))[2000:18000]
    assert level.min() > 0.3  # no gap between the pieces: the tone has an RMS of 0.35


def test_the_waveform_shows_the_interval():
    wav = torch.cat([torch.zeros(500), torch.ones(500)])
    pixels = np.asarray(waveform_image(wav, (0.5, 1.0), (100, 50)))
    assert (pixels[:, :49] == pixels[:, 0:1]).all()
    assert (pixels[5, 75] != pixels[5, 25]).any()


def test_a_click_moves_the_nearer_end():
    from im2wav.webpage.fields import move_interval

    assert move_interval(1.0, 2.0, 0.2) == (0.2, 2.0)
    assert move_interval(1.0, 2.0, 1.8) == (1.0, 1.8)
    assert move_interval(1.0, 2.0, 3.0) == (1.0, 3.0)


def test_the_model_has_the_chosen_adapters(tmp_path):
    loaded = []
    service = AudioService(
        lambda paths: loaded.append(paths) or len(loaded), {"a": "x/a", "b": "x/b@0.5"}, Limits(2, 60, 8), tmp_path, {}
    )
    assert service.model() == service.model(["b", "a"]) == 1  # all at first, loaded once, in the order of the command
    assert service.model(["b"]) == 2
    assert service.model([]) == 3
    assert loaded == [["x/a", "x/b@0.5"], ["x/b@0.5"], []]


def test_a_password_is_needed_where_one_is_set(trained, tmp_path, monkeypatch):
    (tmp_path / "password.txt").write_text("swordfish\n")
    password = read_password(str(tmp_path / "password.txt"))
    with opened(trained, password=password) as (page, _, _):
        url = page.local_url.rstrip("/")
        for path in ("config", "gradio_api/info", "gradio_api/file=x", "gradio_api/queue/data?session_hash=a"):
            assert httpx.get(f"{url}/{path}").status_code == 401, path
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.jpg", b"x")}).status_code == 401
        with httpx.Client(base_url=url) as session:
            assert session.post("/login", data={"username": "a", "password": "wrong"}).status_code == 400
            assert session.post("/login", data={"username": "a", "password": "swordfish"}).status_code == 200
            assert session.get("/config").status_code == 200
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="its first line is empty"):
        read_password(str(tmp_path / "empty.txt"))
    monkeypatch.setenv("IM2WAV_PASSWORD", "secret")
    assert read_password(None) == "secret"


def test_a_port_in_use_and_adapters_of_one_name_are_errors(web):
    page, *_ = web
    with pytest.raises(ValueError, match=f"port={page.server_port}: Address already in use"):
        check_port(page.server_port)
    with pytest.raises(ValueError, match="two files have the same name"):
        adapter_names(["a/x.safetensors", "b/x.safetensors"])
    assert adapter_names(["a/x.safetensors@0.5"]) == {"x.safetensors@0.5": "a/x.safetensors@0.5"}
