"""The page of attacks stands alone, says what it was given and escapes it."""

import re

import torch
from matplotlib.figure import Figure

from fedprune.attacks.page import Passage, Picture, Table, write_findings
from fedprune.attacks.pictures import tiles

ANGRY = "<script>alert(1)</script>"


def drawn() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


def section() -> Passage:
    table = Table(["quantity", "MSE"], [["|g|", "0.1"], [ANGRY, "0.2"]], ("quantity",))
    return Passage("Inversion", ("One.", ANGRY), table, (Picture("x", "Made", ANGRY, drawn()),))


def test_what_is_said_is_there_and_escaped(tmp_path):
    path = tmp_path / "page.html"
    given = (path, "What leaks", ["About."], [section()], "python x.py")
    text = write_findings(*given).read_text("utf-8")
    assert write_findings(*given).read_text("utf-8") == text, "the same bytes again"
    for told in ("What leaks", "About.", "Inversion", "One.", "<td>0.1</td>", "python x.py"):
        assert told in text
    assert text.count("<script") == 1  # the page's own
    assert text.count("&lt;script&gt;") == 4  # paragraph, cell, caption and its alternative text


def test_pictures_are_in_the_page_and_nothing_is_asked_for(tmp_path):
    image = torch.linspace(0, 1, 16).reshape(4, 4)
    strip = Picture("y", "Images", "Sixteen shades.", tiles(["0"] * 9, [("mean", [image] * 9)]))
    both = [section(), Passage("Images", (), None, (strip,))]
    text = write_findings(tmp_path / "page.html", "T", [], both).read_text("utf-8")
    assert text.count("<svg ") == 2
    assert [f'<figure id="{name}"' in text for name in "xy"] == [True, True]
    assert re.search(r'<figure id="y" class="wide">', text)
    assert text.count("data:image/png;base64,") == 9
    asked = re.sub(r'xmlns\S*="[^"]*"', "", text)
    assert not re.search(r"https?:|@import|url\((?!#)", asked)
    assert "Repeat" not in text
    plain = write_findings(tmp_path / "p.html", "T", [], [Passage("S", ("w",))]).read_text("utf-8")
    assert "<table>" not in plain
    assert "<figure" not in plain
