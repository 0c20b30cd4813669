"""The command line: parses, calls, prints. It knows every other room, and none knows it."""

from residuum.cli.main import main as main
