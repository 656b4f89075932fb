"""Data that needs no download: `shapes.py` draws it, `README.md` tells the row formats."""
