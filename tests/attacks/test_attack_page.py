"""The page of attacks stands alone, says what it was given and escapes it."""

import base64
import re

from matplotlib.figure import Figure

from fedprune.attacks.page import Passage, Table, png_of, write_findings

ANGRY = "<script>alert(1)</script>"


def drawn() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


def section() -> Passage:
    table = Table(["quantity", "MSE"], [["|g|", "0.1"], [ANGRY, "0.2"]], ("quantity",))
    return Passage("Inversion", ("One.", ANGRY), table, ((ANGRY, png_of(drawn())),))


def test_what_is_said_is_there_and_escaped(tmp_path):
    path = tmp_path / "page.html"
    text = write_findings(path, "What leaks", ["About."], [section()], "python x.py").read_text(
        "utf-8"
    )
    for told in ("What leaks", "About.", "Inversion", "One.", "<td>0.1</td>", "python x.py"):
        assert told in text
    assert text.count("<script") == 1  # the page's own
    assert text.count("&lt;script&gt;") == 4  # paragraph, cell, caption and its alternative text


def test_pictures_are_in_the_page_and_nothing_is_asked_for(tmp_path):
    text = write_findings(tmp_path / "page.html", "T", [], [section()]).read_text("utf-8")
    (coded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(coded) == section().pictures[0][1]
    assert not re.search(r"https?:|@import|url\(", text)
    assert "Repeat" not in text


def test_the_same_sections_give_the_same_bytes(tmp_path):
    pages = [write_findings(tmp_path / n, "T", [], [section()]).read_bytes() for n in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_section_may_be_words_alone(tmp_path):
    text = write_findings(tmp_path / "p.html", "T", [], [Passage("S", ("w",))]).read_text("utf-8")
    assert "<table>" not in text
    assert "<img" not in text
