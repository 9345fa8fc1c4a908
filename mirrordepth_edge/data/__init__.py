"""Data sets of pictures with measured depth."""
