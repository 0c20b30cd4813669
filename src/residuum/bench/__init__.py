"""The comparison: contenders, what is measured of them, and how the figures are shown."""
