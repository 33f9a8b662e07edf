"""Pages, plots and tables."""

import re

import torch
from PIL import Image

from conftest import ASSETS
from im2wav.report import Audio, Card, Cards, Plot, Table, inline_audio, inline_image, render_page
from im2wav.report import Image as PageImage
from im2wav.report.page import as_markdown, as_text, thumbnail
from im2wav.report.plots import plot_counts, plot_curves, plot_histograms, plot_intervals

RATE = 16000
WAV = torch.sin(torch.arange(RATE) / 10)
BAD = "<script>alert('x')</script>\"&"


def test_a_page_is_one_file_that_holds_everything():
    card = Card("an owl", inline_image(ASSETS / "images" / "owl_03.jpg"), {"real": inline_audio(WAV, RATE)}, "a note")
    figure = plot_curves({"vqvae": {"train/loss": [(0, 1.0), (1, 0.5)]}})
    parts = [Table("Table", [("a", "b"), ("x", 0.123456)]), Cards("Cards", "text", [card, card]), Plot("Plot", figure)]
    page = render_page("title", "text", parts).decode()
    assert page.count("<audio") == 2
    assert page.count("data:audio/flac;base64,") == 2
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'src="data:image/svg+xml' in page
    assert "0.123<" in page
    assert not re.search(r"(?:https?:)?//", re.sub(r'"data:[^"]*"', "", page))  # nothing is fetched
    assert "<script" not in page
    assert render_page("title", "text", parts).decode() == page


def test_names_cannot_write_html():
    card = Card(BAD, PageImage(BAD), {BAD: Audio(BAD, BAD)}, BAD)
    cells = (BAD, PageImage(BAD), Audio(BAD, BAD))
    parts = [Table(BAD, [(BAD,) * 3, cells], BAD), Cards(BAD, BAD, [card]), Plot(BAD, BAD, BAD)]
    page = render_page(BAD, BAD, parts).decode()
    assert "<script" not in page
    written = page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&amp;")
    assert written == page.count("alert(") == 25
    assert page.count("<img") == len(re.findall(r'<img (?:class="plot" )?alt="[^"]*" src="[^"]*">', page)) == 5


def test_an_image_is_shown_upright_and_small(tmp_path):
    image = Image.new("RGB", (1000, 500))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "a.jpg", exif=exif)
    assert thumbnail(tmp_path / "a.jpg").size == (240, 480)
    assert thumbnail(image, 320).size == (320, 160)


def test_plots_are_svg_and_the_same_again():
    for draw in (
        lambda: plot_curves({"a": {"x": [(0, 1.0), (1, 2.0)]}, "b": {}}),
        lambda: plot_histograms({"a": {"x": [1.0, 2.0], "y": [1.0]}, "nothing": {"x": []}}),
        lambda: plot_histograms({}),
        lambda: plot_counts([3, 1], "labels"),
        lambda: plot_intervals({n: {"x": (1.0, 0.5, 2.0), "y": (1.0, None, None)} for n in "abcd"}, {"x": "#123456"}),
    ):
        assert draw().startswith("data:image/svg+xml;base64,")
        assert draw() == draw()


def test_tables_as_text():
    rows = [("name", "value"), ("a", 0.123456), ("longer", 3)]
    assert as_text(rows) == "name    value\na       0.123\nlonger  3"
    assert as_text(rows, 1).splitlines()[-1] == "... and 1 more"
    assert as_markdown(rows) == "| name | value |\n|---|---|\n| a | 0.123 |\n| longer | 3 |\n"
