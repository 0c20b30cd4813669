"""Studies: whether a change of config or recipe helps, by paired seeds, intervals and verdicts."""
