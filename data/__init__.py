"""Data without downloads: `shapes.py` draws a question set, `README.md` describes the row formats."""
