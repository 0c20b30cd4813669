"""Training: the recipe says what (`recipe.py`), the loop how (`loop.py`), the run folder where (`run.py`)."""
