"""Fields of the web page: the input, settings, and the audio to continue or inpaint."""

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from im2wav.media.encoder import ImageEncoder
from im2wav.report.plots import waveform_image
from im2wav.webpage.service import CONTINUE, INPAINT, LONGEST_TEXT, NEW, PHOTO, TEXT, VIDEO, AudioService

log = logging.getLogger(__name__)
EXAMPLES = Path(__file__).parents[1] / "assets" / "pairs" / "images"
EXAMPLE_NAMES = ("cow_04", "bell_01", "cat_03", "wolf_howl_01", "drum_01", "owl_03", "running_stream_01", "bus_01")


def move_interval(start: float, end: float, second: float) -> tuple[float, float]:
    """Move the nearer end of an interval to a second, as a click on the waveform does."""
    return (second, end) if abs(second - start) < abs(second - end) else (start, second)


class FormFields:
    """The fields of a form, by the names of `Form`; its methods add groups of them to the page.

    Args:
        service: sets their ranges.
    """

    def __init__(self, service: AudioService):
        self.service = service
        self.named: dict[str, Any] = {}

    def add_inputs(self) -> None:
        """The input: a photo, a video or a text."""
        kinds = [PHOTO, VIDEO]
        if type(self.service.model().encoder).encode_text is not ImageEncoder.encode_text:
            kinds.append(TEXT)
        self.has_text = TEXT in kinds
        kind = gr.Radio(kinds, value=PHOTO, label="Input", elem_id="kind")
        camera = gr.WebcamOptions(mirror=False)
        photo = gr.Image(label=PHOTO, type="filepath", height=300, webcam_options=camera, elem_id="photo")
        video = gr.Video(label=VIDEO, height=300, webcam_options=camera, visible=False, elem_id="video")
        text = gr.Textbox(label=TEXT, placeholder="a dog barks", max_length=LONGEST_TEXT, visible=False)
        _pass_path(photo)
        _pass_path(video)
        paths = [str(EXAMPLES / f"{name}.jpg") for name in EXAMPLE_NAMES]
        examples = gr.Examples([[path] for path in paths], photo, label="Examples", cache_examples=False)
        shown = [photo, video, text, examples.dataset]
        kind.change(
            lambda chosen: [gr.update(visible=chosen == k) for k in (PHOTO, VIDEO, TEXT, PHOTO)],
            kind,
            shown,
            **quick_event(),
        )
        self.named |= {"kind": kind, "photo": photo, "video": video, "text": text}

    def add_length_and_seed(self) -> None:
        """Length and seed."""
        longest = self.service.limits.seconds
        window = min(self.service.model().window, longest)
        note = f"seconds; 0: that of the video, or {window:.1f} for a photo"
        with gr.Row():
            self.named["seconds"] = gr.Number(
                0, minimum=0, maximum=longest, step=0.1, label="Length", info=note, min_width=140, elem_id="seconds"
            )
            self.named["seed"] = gr.Number(
                0, precision=0, minimum=0, label="Seed", info="same seed, same audio", min_width=140, elem_id="seed"
            )

    def add_settings(self) -> None:
        """Sampling options, drafts, adapters, and the negative input."""
        model, limits = self.service.model(), self.service.limits
        sampling, is_guided = model.sampling(self.service.sampling), model.networks.low.can_be_guided
        with gr.Row():
            self.named["guidance_scale"] = gr.Slider(
                0, 10, sampling.guidance_scale, step=0.1, label="Guidance", info="how closely to follow the input"
            )
            self.named["temperature"] = gr.Slider(
                0.1, 2, sampling.temperature, step=0.05, label="Temperature", info="higher: more varied"
            )
            self.named["num_drafts"] = gr.Slider(
                1,
                limits.drafts,
                1,
                step=1,
                label="Drafts to choose from",
                info="the one that the input explains best is refined first",
                visible=is_guided and limits.drafts > 1,
                elem_id="num_drafts",
            )
        self.named["adapters"] = gr.CheckboxGroup(
            list(self.service.adapters),
            value=list(self.service.adapters),
            label="Adapters",
            visible=bool(self.service.adapters),
        )
        with gr.Row(visible=is_guided):
            negative = gr.Image(
                label="Negative photo", type="filepath", height=200, sources=["upload", "clipboard"], elem_id="negative"
            )
            _pass_path(negative)
            with gr.Column():
                negative_text = gr.Textbox(label="Or a negative text", max_length=LONGEST_TEXT, visible=self.has_text)
                scale = gr.Slider(
                    0, 5, sampling.negative_scale, step=0.1, label="Negative scale", info="how far to move away from it"
                )
        self.named |= {"negative": negative, "negative_text": negative_text, "negative_scale": scale}

    def add_edit(self, last: gr.State) -> None:
        """Audio to continue or inpaint; `last` is the latest answer."""
        task = gr.Radio(
            [NEW, CONTINUE, INPAINT],
            value=NEW,
            label="Task",
            info="Continue: the output begins with this audio. Inpaint: only the interval is generated again; change "
            "the seed to get another result.",
        )
        known = gr.Audio(label="Audio", type="filepath", sources=["upload", "microphone"], buttons=[])
        _pass_path(known)
        take = gr.Button("Take the latest result", size="sm")
        waveform = gr.Image(show_label=False, alt_text="Waveform", interactive=False, buttons=[], elem_id="waveform")
        gr.Markdown("Click on the waveform to move the nearer end of the interval.")
        with gr.Row():
            start = gr.Number(0, minimum=0, label="From second", info="for inpainting")
            end = gr.Number(0, minimum=0, label="To second", info="continuation begins here")
        self.named |= {"task": task, "known": known, "start": start, "end": end, "last": last}
        take.click(lambda answer: answer and str(answer.files[0]), last, known, **quick_event())
        drawn: dict[str, Any] = {"outputs": [waveform, start, end], **quick_event()}
        known.change(self._draw, [known], **drawn)
        waveform.select(self._click, [known, start, end], **drawn)
        for number in (start, end):
            number.submit(self._draw, [known, start, end], **drawn)

    def _draw(self, path: str | None, start: float | None = None, end: float | None = None) -> Any:
        """The waveform of a file with an interval, by default its middle third, and the interval."""
        if path is None:
            return None, 0, 0
        with shown_errors(self.service):
            wav, seconds = self.service.read_known(path)
        first, last = (0, 0) if start is None or end is None else (min(max(x, 0), seconds) for x in (start, end))
        if not first < last:
            first, last = seconds / 3, seconds * 2 / 3
        drawn = waveform_image(wav, (first / seconds, last / seconds))
        return drawn, round(first, 2), round(last, 2)

    def _click(self, path: str | None, start: float, end: float, event: gr.SelectData) -> Any:
        if path is None:
            return None, 0, 0
        with shown_errors(self.service):
            wav, seconds = self.service.read_known(path)
        second = event.index[0] / waveform_image(wav).width * seconds
        return self._draw(path, *move_interval(start or 0, end or 0, second))


@contextmanager
def shown_errors(service: AudioService) -> Iterator[None]:
    """Show errors of the user as they are, without paths of the server; log others."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, OSError) as error:
        text = service.readable(error)
        log.info("rejected: %s", text)
        raise gr.Error(html.escape(text), duration=None, print_exception=False) from None
    except Exception as error:
        log.exception("a request failed")
        raise gr.Error("Internal error: see the log of the server", duration=None, print_exception=False) from error


def _pass_path(component: Any) -> None:
    """Pass an uploaded file to events as it is: reading media, and rejecting bad files, is up to `im2wav.media`."""
    component.preprocess = lambda payload: payload and payload.path


def quick_event() -> dict[str, Any]:
    """Options of events that do not use the model."""
    return {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
