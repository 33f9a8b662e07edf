"""Whether a server answers within seconds: libraries that download wait for minutes where packets are dropped."""

import http.client
import ssl
import urllib.error
import urllib.request
from threading import Thread

from huggingface_hub import constants


def is_reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers a HEAD request within some seconds; proxies of the environment are used.

    A server that answers with an error of its own (5xx) is not reachable. One whose certificate is rejected is: the
    library that uses the server may know its certificate.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError))

    asking = Thread(target=ask, daemon=True)  # the timeout does not cover the resolution of the name
    asking.start()
    asking.join(seconds)
    return any(answers)


def check_hub() -> None:
    """Raise ConnectionError if the Hugging Face Hub does not answer within seconds; its own client retries for minutes.

    With HF_HUB_OFFLINE=1 the client itself raises at once.
    """
    if not constants.HF_HUB_OFFLINE and not is_reachable(constants.ENDPOINT):
        raise ConnectionError(f"no answer from {constants.ENDPOINT}")


def first_line(error: Exception) -> str:
    """The type of an error of a network library and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
