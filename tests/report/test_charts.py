"""Charts: nothing lies over anything else, nothing is cut off."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residuum.report.charts import (
    PALETTE,
    WIDTH,
    Bar,
    Line,
    Point,
    bar_chart,
    colours,
    interval_chart,
    line_chart,
    paired_chart,
    scatter_chart,
    spread,
)


def places(chart):
    """Each text of a drawing with where it begins: (text, x, y)."""
    found = re.findall(r'<text [^>]*?transform="[^"]*translate\(([\d.-]+) ([\d.-]+)\)[^>]*>([^<]*)<', chart.drawing)
    found += re.findall(r'<text [^>]*?\bx="([\d.-]+)" y="([\d.-]+)"[^>]*>([^<]*)<', chart.drawing)
    return {text: (float(x), float(y)) for x, y, text in found}


def bars(*highs):
    return [Bar(f"network {i}", 1 + i / 10, (0.9, high), f"{i}.25", "#0a7cc2") for i, high in enumerate(highs)]


def test_labels_stand_in_a_column_of_their_own_however_far_an_interval_reaches():
    for highs in ((1.5, 2.0, 1.2), (1.5, 400.0, 1.2)):
        chart = bar_chart("T", bars(*highs), unit="speed", labels="images/s", description="d", reference=1)
        found = places(chart)
        columns = {found[f"{i}.25"][0] for i in range(3)}
        assert len(columns) == 1
        lines = re.findall(r"[ML] ([\d.]+) [\d.]+", chart.drawing)
        assert max(map(float, lines)) < min(columns) + 1


def test_an_interval_that_is_cut_off_has_an_arrow():
    def arrow(high):
        return 'id="beyond1"' in bar_chart("T", bars(1.5, high), unit="", labels="", description="").drawing

    assert arrow(400.0)
    assert not arrow(1.7)


def test_everything_lies_within_the_drawing_even_with_long_names():
    bar = Bar("a very long name of a network that somebody made", 1.0, None, "1234.5", "#0a7cc2")
    chart = bar_chart("T", [bar], unit="speed", labels="images/s", description="d")
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', chart.drawing)[1])
    assert width == pytest.approx(72 * WIDTH)
    assert all(0 <= x < width for x, _ in places(chart).values())


def test_names_of_points_do_not_lie_on_each_other():
    points = [Point(f"network {i}", 659, 4 + i / 100, "#0a7cc2") for i in range(7)]
    found = places(scatter_chart("T", points, x="MiB", y="images/s", description="d"))
    heights = sorted(y for text, (_, y) in found.items() if text.startswith("network"))
    assert len(heights) == 7
    assert all(b - a > 9 for a, b in pairwise(heights))


def test_names_of_lines_do_not_lie_on_each_other_and_a_line_without_one_has_none():
    lines = [Line(f"network {i}", [(1, 10.0), (2, 20 + i / 100), (3, 30 + i / 100)], "#0a7cc2") for i in range(5)]
    chart = line_chart("T", [*lines, Line("", [(1, 5.0), (2, 6.0)], "#7f7f7f")], x="epoch", y="loss", description="d")
    found = places(chart)
    heights = sorted(y for text, (_, y) in found.items() if text.startswith("network"))
    assert len(heights) == 5
    assert all(b - a > 9 for a, b in pairwise(heights))
    assert {text for text in found if text in "123"} == {"1", "2", "3"}  # epochs are whole


def test_a_line_of_one_place_is_seen():
    assert "<use" in line_chart("T", [Line("a", [(1, 5.0)], "#0a7cc2")], x="", y="", description="").drawing


@given(st.lists(st.floats(0, 10), max_size=12).map(sorted))
def test_spread_places_keep_their_order_their_distance_and_the_frame(values):
    found = spread(values, 0.5, 10)
    assert len(found) == len(values)
    assert all(b - a > 0.5 - 1e-6 for a, b in pairwise(found))
    assert all(-1e-6 <= place <= 10 + 1e-6 for place in found)


def test_values_far_apart_stay_where_they_are():
    assert spread([1.0, 3.0, 9.0], 0.5, 10) == [1.0, 3.0, 9.0]


def test_colours_are_those_known_and_else_of_the_palette_each_once():
    found = colours(["a", "residuum", "b", "a"], {"residuum": PALETTE[0]})
    assert found["residuum"] == PALETTE[0]
    assert len(set(found.values())) == 3


def test_a_forest_plot_shades_the_margin_and_has_an_interval_for_each_that_has_one():
    bars = [Bar("one", 1.0, (0.5, 1.5), "better", PALETTE[2]), Bar("two", -1.0, None, "undecided", PALETTE[2])]
    with_margin = interval_chart("t", bars, unit="points", labels="", description="d", margin=0.3).drawing
    without = interval_chart("t", bars, unit="points", labels="", description="d").drawing
    assert 'id="margin"' in with_margin
    assert 'id="margin"' not in without
    assert "better" in without
    assert without.count(f"stroke: {PALETTE[2]}; stroke-width: 2") == 1


def test_pairs_have_a_row_a_name_and_leave_out_what_is_no_number():
    drawing = paired_chart(
        "t", ["base", "variant"], [[1.0, 2.0], [1.5, float("nan")]], unit="%", description="d"
    ).drawing
    assert ">base<" in drawing
    assert "nan" not in drawing


def test_the_front_joins_those_that_are_named():
    points = [Point(name, x, 90.0 + x, PALETTE[2]) for name, x in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    chart = scatter_chart("t", points, x="x", y="y", description="d", zero=False, front=("a", "b"))
    assert 'id="front"' in chart.drawing
    assert ">0<" not in chart.drawing  # neither axis begins at 0
    assert 'id="front"' not in scatter_chart("t", points, x="x", y="y", description="d").drawing
