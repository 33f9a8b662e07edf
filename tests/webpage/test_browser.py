"""The web page in a real browser: upload, generate, play, download, bad files."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import av
import pytest
import soundfile

from conftest import ASSETS, write_mp4

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
    pytest.mark.slow,
]
# tests may run as root; the camera is one of chromium's own
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
COW = str(ASSETS / "images" / "cow_04.jpg")
SOUNDS = "(document.querySelector('#live audio') || {currentTime: 0}).currentTime > 0.05"


@pytest.fixture(scope="module")
def url(trained, tmp_path_factory):
    """The address that `im2wav web` prints; the command ends when it is interrupted, and deletes its files."""
    temporary = tmp_path_factory.mktemp("tmp")
    command = [
        sys.executable,
        "-m",
        "im2wav.cli",
        "web",
        f"paths.runs={trained}",
        "run_name=base",
        "device=cpu",
        "port=null",
    ]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        found = re.search(r"The page is at (http://127\.0\.0\.1:\d+/)", "".join(lines))
        assert found, lines
        assert len(list(temporary.glob("im2wav-web-*"))) == 1
        yield found[1]
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 143
    assert "interrupted by SIGTERM: the page is closed" in rest
    assert list(temporary.glob("im2wav-web-*")) == []


@pytest.fixture
def page(url):
    """The page in a browser; it must not load anything from other servers, nor raise errors of JavaScript."""
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        requests, errors = [], []
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto(url)
        shown.wait_for_selector("#generate")
        yield shown
        browser.close()
    assert requests
    assert [one for one in requests if not one.startswith((url, "data:", "blob:"))] == []
    assert errors == []


def message(page) -> str:
    """The one error that the page shows; it is closed."""
    page.wait_for_selector(".toast-body", timeout=30_000)
    (toast,) = page.query_selector_all(".toast-body")
    text = toast.inner_text()
    page.click(".toast-close")
    page.wait_for_selector(".toast-body", state="detached")
    return text


def upload(page, path: str) -> None:
    if remove := page.query_selector('#photo button[aria-label="Remove Image"]'):
        remove.click()
    page.set_input_files("#photo input[type=file]", path)
    page.wait_for_selector("#photo img", state="attached")


def fill(page, selector: str, value: str) -> None:
    """Fill a number field. One that has just appeared may set its first value once more, on a busy machine."""
    end = time.monotonic() + 30
    while page.input_value(selector) != value:
        assert time.monotonic() < end, f"{selector} does not keep {value}"
        page.fill(selector, value)
        page.keyboard.press("Tab")
        page.wait_for_timeout(300)


def generate(page, timeout: float = 60_000) -> float:
    """Click, and wait for the first sound: seconds between the two."""
    start = time.monotonic()
    page.click("#generate")
    page.wait_for_function(SOUNDS, timeout=timeout, polling=20)
    return time.monotonic() - start


def test_upload_generate_play_and_download(page, tmp_path):
    upload(page, COW)
    assert generate(page) < 60
    page.wait_for_selector("#files a")
    assert page.eval_on_selector("#spectrogram img", "image => image.complete && image.naturalWidth") > 100
    suffixes = []
    for link in page.query_selector_all("#files a"):
        with page.expect_download() as download:
            link.click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.stat().st_size > 100
        suffixes.append(path.suffix)
    assert suffixes == [".wav", ".flac", ".mp3", ".mp4"]
    wav, rate = soundfile.read(tmp_path / "cow_04_im2wav.wav")
    assert (len(wav), rate) == (4096, 16000)
    for width in (1280, 390):  # nothing is wider than the window, also on a phone
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_bad_files_give_one_message_each(page, tmp_path):
    page.click("#generate")
    assert "Choose a photo first" in message(page)
    (tmp_path / "notes.jpg").write_text("not an image")
    upload(page, str(tmp_path / "notes.jpg"))
    page.click("#generate")
    text = message(page)
    assert "unreadable image: notes.jpg" in text
    assert "im2wav-web-" not in text  # no path of the server
    page.click('#photo button[aria-label="Remove Image"]')
    (tmp_path / "big.jpg").write_bytes(b"\xff" * 50_000_000)
    page.set_input_files("#photo input[type=file]", str(tmp_path / "big.jpg"))
    assert "exceed the maximum allowed size of 25.0 Mb" in message(page)
    upload(page, COW)  # the page still works
    generate(page)


def test_an_example_drafts_and_inpainting_on_the_waveform(page):
    page.click(".gallery-item")
    page.wait_for_selector("#photo img")
    page.click("#settings button")
    fill(page, "#num_drafts input[type=number]", "3")
    generate(page)
    page.wait_for_selector("#drafts label")
    assert len(page.query_selector_all("#drafts label")) == 3
    page.click("#drafts label:nth-of-type(3)")
    first = page.get_attribute("#files a", "href")
    page.click("#refine")
    page.wait_for_function(f"document.querySelector('#files a').getAttribute('href') != '{first}'")
    page.click("#edit button")
    page.click('#edit button:has-text("Take the latest result")')
    page.wait_for_selector("#waveform img")
    page.click('#edit label:has-text("Inpaint")')
    page.wait_for_selector('#edit label.selected:has-text("Inpaint")')
    image = page.locator("#waveform img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    image.click(position={"x": box["width"] * 0.9, "y": box["height"] / 2})
    page.wait_for_function("document.querySelectorAll('#edit input[type=number]')[1].value == '0.23'")  # of 0.256 s
    fill(page, "#seed input", "7")
    second = page.get_attribute("#files a", "href")
    page.click("#generate")
    page.wait_for_function(f"document.querySelector('#files a').getAttribute('href') != '{second}'")
    assert page.query_selector(".toast-body") is None


def test_a_video(page, tmp_path):
    page.click('#kind label:has-text("Video")')
    page.set_input_files("#video input[type=file]", str(write_mp4(tmp_path / "clip.mp4", seconds=0.5)))
    page.wait_for_selector("#video video")
    generate(page)
    page.wait_for_selector("#clip video")
    (link,) = [link for link in page.query_selector_all("#files a") if link.get_attribute("href").endswith(".mp4")]
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "made.mp4")
    with av.open(tmp_path / "made.mp4") as made:
        assert {stream.type for stream in made.streams} == {"video", "audio"}


def test_a_photo_of_the_camera(page):
    page.click('#photo button[aria-label="Capture from camera"]')
    page.click('#photo [title="grant webcam access"]')
    page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")  # a busy machine starts it late
    page.click('#photo button[aria-label="capture photo"]')
    page.wait_for_selector("#photo img")
    generate(page)
    page.wait_for_selector("#files a")
