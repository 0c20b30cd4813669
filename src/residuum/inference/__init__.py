"""Networks where they are only used: folded for speed (`folding.py`), and classes of image files (`predict.py`)."""
