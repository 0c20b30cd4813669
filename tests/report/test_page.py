"""The page: whole without a network, readable to machines and people, and never fooled by names."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from residuum.report.charts import Bar, Point, bar_chart, scatter_chart
from residuum.report.page import Card, Page, Section, html
from residuum.report.tables import Judged, Table

ODD = '<script>alert("x")</script> & [red] $x^2$ {{ 7 * 7 }} 漢字 \x07'
VOID = {"meta", "path", "use", "link", "br", "rect", "circle", "line", "stop"}


def charts(name=ODD):
    bars = [Bar(name, 1.5, (1.0, 9.0), "3.2", "#0a7cc2"), Bar("torchvision", 1.0, None, "2.1", "#d55e00")]
    points = [Point(name, 100, 3.2, "#0a7cc2"), Point("torchvision", 100, 3.2, "#d55e00")]
    return (
        bar_chart(name, bars, unit="speed", labels="images/s", description=name, reference=1.0),
        scatter_chart(name, points, x="MiB", y="images/s", description=name),
    )


@pytest.fixture(scope="module")
def text():
    table = Table(ODD, ("network", ODD), ((ODD, Judged("faster", "better")), ("other", "-")), ODD)
    cards = (Card(ODD, "2 faster", ODD, "better"), Card("other", "none"))
    section = Section(ODD, ODD, charts(), (table, table))
    return html(Page(ODD, ODD, f"residuum bench {ODD}", {ODD: ODD}, cards, (section, section)))


class Outline(HTMLParser):
    """Elements in order, with what they have; raises where one is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def outline(text):
    parser = Outline()
    parser.feed(text)
    assert not parser.open
    return parser.found


def test_names_from_outside_are_text_and_nothing_else(text, outline):
    assert "script" not in {tag for tag, _ in outline}
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x07" not in text


def test_the_page_needs_nothing_else(text, outline):
    for _, attributes in outline:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#"), value
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_each_name_on_the_page_is_there_once_and_what_is_referred_to_is_there(text, outline):
    names = [attributes["id"] for _, attributes in outline if "id" in attributes]
    assert len(names) == len(set(names))
    referred = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text))
    assert {a or b for a, b in referred} <= set(names)
    for _, attributes in outline:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(names)


def test_a_screen_reader_has_a_title_and_a_description_of_each_chart_and_heads_of_rows_and_columns(outline):
    drawings = [attributes for tag, attributes in outline if tag == "svg"]
    assert len(drawings) == 4
    assert all(drawing["role"] == "img" and len(drawing["aria-labelledby"].split()) == 2 for drawing in drawings)
    scopes = [attributes.get("scope") for tag, attributes in outline if tag == "th"]
    assert set(scopes) == {"col", "row"}
    assert ("html", {"lang": "en"}) in outline


def test_there_is_a_dark_side_and_a_narrow_one(text):
    assert "prefers-color-scheme:dark" in text
    assert '<meta name="viewport" content="width=device-width' in text


def test_the_page_is_the_same_each_time():
    page = Page("T", "about", sections=(Section("S", charts=charts()),))
    assert html(page) == html(Page("T", "about", sections=(Section("S", charts=charts()),)))


def test_the_drawing_is_well_formed_and_its_text_is_text_in_the_pages_colour():
    for number, chart in enumerate(charts("resnet50"), 1):
        element = chart.element(number)
        ElementTree.fromstring(element)
        assert ">resnet50<" in element
        assert "currentColor" in element
        assert "#000000" not in element
        assert "width=" not in element[: element.index(">")]
