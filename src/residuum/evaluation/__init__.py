"""How good a network is: its predictions image by image (`predictions.py`), what they count to (`counts.py`), pages."""
