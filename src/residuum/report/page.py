"""One page for every report: HTML that needs nothing else, for a screen, a phone, the dark and a screen reader."""

from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count

from residuum.errors import shortened
from residuum.report.charts import Chart
from residuum.report.tables import LONGEST, Judged, Table, Value, Verdict


@dataclass(frozen=True)
class Card:
    """What is to be known first: a few words or a figure, what it is of, and a line of small print."""

    label: str
    value: str
    note: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Section:
    """Charts and tables under one heading, with a paragraph of text above them, and below it a text as it is."""

    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    listing: str = ""


@dataclass(frozen=True)
class Page:
    """A report. `about` says in a sentence what it is and of when, `command` what makes it again.

    `details` are names and values that a reader looks up, such as the machine and versions.
    """

    title: str
    about: str
    command: str = ""
    details: dict[str, str] = field(default_factory=dict)
    cards: tuple[Card, ...] = ()
    sections: tuple[Section, ...] = ()


def html(page: Page) -> str:
    """The page as one file. Every text in it, from wherever it comes, is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clean": lambda text: shortened(text, 10 * LONGEST), "verdict": _verdict, "lines": _lines}
    numbers = count(1)

    def drawn(chart: Chart) -> str:
        return Markup(chart.element(next(numbers)))

    template = environment.from_string(files("residuum.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page, drawn=drawn)


def _verdict(value: Value) -> str:
    return value.verdict if isinstance(value, Judged) else ""


def _lines(text: str) -> str:
    return "\n".join(shortened(line, LONGEST) for line in text.splitlines()[:10_000])
