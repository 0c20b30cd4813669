"""Networks for other programs: `export` writes one in another format, proved to answer as the network does."""

from residuum.export.program import export as export
