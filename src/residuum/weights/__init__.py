"""Weights in and out: of ours, of other libraries, by reference; whose names they have, and what network they are."""
