"""Weights in and out: files of ours (`files.py`), layouts of parameter names (`layouts.py`), hubs, config detection."""
