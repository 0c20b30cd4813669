"""Data: what a dataset holds (`catalog.py`), its images (`sources.py`, `decoding.py`), and batches (`loaders.py`)."""
