"""docs/space/app.py, the web page as a Space on the Hub."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from conftest import REPO


@pytest.mark.slow
def test_the_app_of_a_space_serves_the_starter_model_and_may_be_shown_in_the_frame_of_the_hub():
    pytest.importorskip("gradio")
    command = [sys.executable, str(REPO / "docs" / "space" / "app.py"), "port=null", "host=127.0.0.1"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as server:
        try:
            lines = []
            for line in server.stdout:
                lines.append(line)
                if found := re.search(r"The page is at (http://\S+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            with urllib.request.urlopen(found[1]) as answer:
                assert answer.status == 200
                assert "frame-ancestors 'self' https://huggingface.co" in answer.headers["content-security-policy"]
                assert "starter" in answer.read().decode()
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode in (0, 130, -signal.SIGINT)
