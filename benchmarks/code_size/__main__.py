"""Count the lines of code that define ResNet-50 and that change it, in each library.

Run `python -m benchmarks.code_size [--contenders residuum torchvision] [--markdown]` in a checkout.
"""

import argparse
from collections.abc import Sequence

from benchmarks.code_size.changes import CHANGES, lines_to_change
from benchmarks.code_size.lines import DEFINITIONS, count_lines, folder_of
from rich.console import Console

from residuum.report.tables import Table, markdown, print_table


def definitions(contenders: Sequence[str]) -> Table:
    """The lines that define each contender's network."""
    counts = [count_lines(name) for name in contenders]
    rows = {
        "reached, in the network's own files": [count.file for count in counts],
        "reached, with all that these need": [count.all for count in counts],
        "the network's own files, whole": [count.whole_file for count in counts],
        "all files that are reached, whole": [count.whole_all for count in counts],
        "files that are reached": [count.files for count in counts],
    }
    return Table(
        "Lines that define ResNet-50",
        ("lines of code", *contenders),
        tuple((title, *(f"{number:,}" for number in numbers)) for title, numbers in rows.items()),
        "Without blank lines, comments and docstrings: what is reached by name from the call that makes the network, "
        "within the contender's own library. Ours are of the whole family.",
    )


def changes(contenders: Sequence[str]) -> Table:
    """The lines that each modification takes."""
    counts = [lines_to_change(name) for name in contenders]
    rows = [(title, *(str(count[name]) for count in counts)) for name, title in CHANGES]
    rows.append(("all together", *(str(sum(count.values())) for count in counts)))
    return Table("Lines to change it", ("modification", *contenders), tuple(rows))


def main(args: Sequence[str] | None = None) -> None:
    """Print both tables."""
    installed = [name for name, where in DEFINITIONS.items() if folder_of(where.library) is not None]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.code_size", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--contenders", nargs="+", choices=DEFINITIONS, default=installed, metavar="NAME",
        help=f"whose lines are counted: {', '.join(DEFINITIONS)}; by default all that are installed",
    )  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args(args)
    for table in (definitions(options.contenders), changes(options.contenders)):
        if options.markdown:
            print(markdown(table), end="\n\n")
        else:
            print_table(Console(), table)


if __name__ == "__main__":
    main()
