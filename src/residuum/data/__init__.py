"""Data: where images come from (`sources.py`), and how they become batches on the device (`batches.py`)."""
