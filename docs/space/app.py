"""The web page of im2wav as a Space on the Hugging Face Hub: `python app.py`.

Environment variable: IM2WAV_MODEL, a model on the Hub or `official` instead of the starter model.
"""

import os
import sys

from im2wav.web import main

OPTIONS = [
    "host=0.0.0.0",  # a Space forwards the requests of its visitors to port 7860
    "port=7860",
    f"pretrained={os.environ.get('IM2WAV_MODEL', 'starter')}",
    "frames=['https://huggingface.co']",  # the page of the Space shows this one in a frame
    "max_seconds=10",
    "max_queue=16",
]

if __name__ == "__main__":
    sys.argv[1:] = [*OPTIONS, *sys.argv[1:]]
    main()
