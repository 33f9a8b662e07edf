"""Seconds from the click on Generate to the first sound, and to the complete audio, in headless Chromium.

    python experiments/web_speed.py [SECONDS ...]    # lengths of audio; 0: one window

Needs `pip install 'im2wav[dev]'` and Chromium.
"""

import re
import shutil
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

from im2wav.webpage.fields import EXAMPLES

PLAYS = "(document.querySelector('#live audio') || {currentTime: 0}).currentTime > 0.05"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))


def measure(page, url: str, seconds: str) -> tuple[float, float]:
    """The two times for one photo and length."""
    page.goto(url)
    page.wait_for_selector("#generate")
    page.set_input_files("#photo input[type=file]", EXAMPLES / "cow_04.jpg")
    page.wait_for_selector("#photo img", state="attached")
    page.fill("#seconds input", seconds)
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    start = time.monotonic()
    page.click("#generate")
    page.wait_for_function(PLAYS, polling=20)
    first = time.monotonic() - start
    page.wait_for_selector("#files a")
    return first, time.monotonic() - start


command = [sys.executable, "-u", "-m", "im2wav.web", "port=null"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
    lines = iter(server.stdout.readline, "")
    url = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    for seconds in sys.argv[1:] or ["0", "0", "0", "10", "10"]:
        first, whole = measure(browser.new_page(), url, seconds)
        sys.stdout.write(f"{seconds} s: first sound after {first:.1f} s, complete after {whole:.1f} s\n")
    browser.close()
    server.terminate()
    server.communicate()
