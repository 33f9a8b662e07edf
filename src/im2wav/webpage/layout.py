"""The web page: fields, results and events."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from im2wav.media.mux import AacStream, aac_seconds
from im2wav.report.plots import mel_image
from im2wav.webpage.fields import FormFields, quick_event, shown_errors
from im2wav.webpage.service import VIDEO, Answer, AudioService, Draft, Form

PLOT_SIZE = (900, 160)  # pixels of a spectrogram
MODEL = "model"  # events that use the model run one at a time
CSS = """
.gradio-container {max-width: 1200px !important; margin: auto}
#spectrogram img {width: 100%; height: 130px; object-fit: fill; border-radius: 6px}
#waveform img {width: 100%; height: auto; cursor: crosshair}
#files button[aria-label^="Remove"] {display: none}
"""


def spectrogram_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """The log-mel spectrogram of wav [N] in the size of the page."""
    return mel_image(wav, sample_rate).resize(PLOT_SIZE, Image.Resampling.BICUBIC)


class WebPage:
    """Builds the page of a service.

    Args:
        service: answers its requests.
        title: name of the model.
        keep: seconds after which files and results are deleted.
    """

    def __init__(self, service: AudioService, title: str, keep: float):
        self.service, self.title, self.keep = service, title, keep
        self.rate = service.model().sample_rate
        self.form = FormFields(service)

    def build(self) -> gr.Blocks:
        """The page; `gr.Blocks.launch` serves it."""
        age = max(1, round(self.keep))
        with gr.Blocks(title="im2wav", analytics_enabled=False, delete_cache=(min(age, 60), age)) as page:
            self.last = gr.State(None, time_to_live=self.keep)
            gr.Markdown(f"# im2wav\nAudio for a photo or a video, from the model **{html.escape(self.title)}**.")
            with gr.Row():
                with gr.Column(min_width=320):
                    self.form.add_inputs()
                    self.form.add_length_and_seed()
                    with gr.Row():
                        self.generate = gr.Button("Generate", variant="primary", scale=3, elem_id="generate")
                        self.stop = gr.Button("Stop", scale=1, min_width=80)
                with gr.Column(min_width=320):
                    self._results()
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                self.form.add_settings()
            with gr.Accordion("Continue or inpaint audio", open=False, elem_id="edit"):
                self.form.add_edit(self.last)
            self._events()
        return page

    def _results(self) -> None:
        self.live = gr.Audio(
            label="Live: plays while it is generated",
            streaming=True,
            autoplay=True,
            interactive=False,
            buttons=[],
            elem_id="live",
        )
        self.live.stream_output = self._stream_output
        self.audio = gr.Audio(label="Generated audio", interactive=False, buttons=[], elem_id="audio")
        self.spectrogram = gr.Image(
            show_label=False,
            alt_text="Log-mel spectrogram",
            interactive=False,
            format="png",
            buttons=[],
            elem_id="spectrogram",
        )
        gr.Markdown("Mel spectrogram, on a logarithmic scale: time to the right, frequency upwards.")
        self.clip = gr.Video(label="With the audio", interactive=False, visible=False, buttons=[], elem_id="clip")
        self.files = gr.File(label="Downloads", file_count="multiple", interactive=False, elem_id="files")
        self.note = gr.Markdown(elem_id="note")
        with gr.Group(visible=False) as self.drafts:
            self.draft = gr.Radio([], label="Drafts, the best first (guidance gap)", elem_id="drafts")
            self.draft_audio = gr.Audio(label="Draft: low level only", interactive=False, buttons=[])
            self.refine = gr.Button("Use this draft", elem_id="refine")

    def _events(self) -> None:
        inputs = [self.form.named[item.name] for item in fields(Form)]
        outputs = [self.live, self.audio, self.spectrogram, self.clip, self.files, self.note, self.last]
        outputs += [self.drafts, self.draft, self.draft_audio]
        options: dict[str, Any] = {"outputs": outputs, "concurrency_id": MODEL, "concurrency_limit": 1}
        options |= {"show_progress_on": [self.audio], "trigger_mode": "once"}
        running = [
            self.generate.click(self._generated, inputs, api_name="generate", **options),
            self.refine.click(self._refined, [self.draft, self.last], api_visibility="private", **options),
        ]
        self.stop.click(None, cancels=running, api_visibility="private")
        self.draft.select(self._draft_path, [self.draft, self.last], self.draft_audio, **quick_event())

    def _generated(self, *values: Any) -> Iterator[dict[Any, Any]]:
        yield from self._answer(Form(*values))  # Gradio streams the values of generator functions only

    def _answer(self, form: Form, seed: int | None = None, drafts: Sequence[Draft] = ()) -> Iterator[dict[Any, Any]]:
        """Values of the outputs: pieces of audio, as soon as they are generated, and at the end the answer."""
        with shown_errors(self.service):
            run, encoder = self.service.run(form, seed), AacStream(self.rate)
            is_streamed = False
            while True:
                try:
                    piece = next(run)
                except StopIteration as finished:
                    answer: Answer = finished.value
                    break
                is_streamed = True
                yield {self.live: encoder.encode(piece)}
            if not is_streamed:
                yield {self.live: encoder.encode(answer.audio.wav)}
            values = self._values(replace(answer, drafts=tuple(drafts) or answer.drafts), is_new=not drafts)
            yield {self.live: encoder.encode(None), **values}

    async def _stream_output(self, content: bytes | None, name: str, is_first: bool) -> tuple[Any, Any]:
        """The next segment of a stream of AAC; Gradio's own method needs the program ffmpeg."""
        file = {"path": name, "is_stream": True, "orig_name": "live.aac", "meta": {"_type": "gradio.FileData"}}
        if not content:
            return None, file
        return {"data": content, "duration": aac_seconds(content, self.rate), "extension": ".aac"}, file

    def _refined(self, name: str | None, last: Answer | None) -> Iterator[dict[Any, Any]]:
        draft = self._draft(name, last)
        if draft is None or last is None:
            raise gr.Error("Choose a draft first", print_exception=False)
        yield from self._answer(last.form, draft.seed, last.drafts)

    @staticmethod
    def _draft(name: str | None, last: Answer | None) -> Any:
        return next((draft for draft in (last.drafts if last else ()) if draft.name == name), None)

    def _draft_path(self, name: str | None, last: Answer | None) -> str | None:
        draft = self._draft(name, last)
        return draft and str(draft.path)

    def _values(self, answer: Answer, is_new: bool) -> dict[Any, Any]:
        audio, files = answer.audio, [str(path) for path in answer.files]
        has_clip = answer.form.kind == VIDEO and files[-1].endswith(".mp4")
        values: dict[Any, Any] = {
            self.audio: files[0],
            self.spectrogram: spectrogram_image(audio.wav, audio.sample_rate),
            self.clip: gr.update(value=files[-1] if has_clip else None, visible=has_clip),
            self.files: files,
            self.note: html.escape(answer.note),
            self.last: answer,
        }
        if is_new:
            names = [draft.name for draft in answer.drafts]
            values[self.drafts] = gr.update(visible=bool(names))
            values[self.draft] = gr.update(choices=names, value=names[0] if names else None)
            values[self.draft_audio] = str(answer.drafts[0].path) if names else None
        return values
