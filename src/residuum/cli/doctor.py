"""`residuum doctor`: the installation and the machine, for a report of a fault."""

import json as jsons
from dataclasses import dataclass

from rich.console import Console

from residuum.cli.console import say


@dataclass(frozen=True)
class Doctor:
    """Show the installation and the machine on one screen, and what is wrong with them. Exit code 1 for problems.

    Copy what it prints into a report of a fault. It changes nothing and reaches no network.
    """

    # print everything as JSON, with sizes in bytes
    json: bool = False


def run(command: Doctor, console: Console) -> int:
    """Examine, and print; 1 where there is a problem."""
    from residuum.doctor.report import examine, lines

    found = examine()
    if command.json:
        console.out(jsons.dumps(found, indent=2), highlight=False)
    else:
        for line in lines(found):
            say(console, line)
    return int(bool(found["problems"]))
