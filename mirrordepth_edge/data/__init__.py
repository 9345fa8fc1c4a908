"""Data sets of images with measured depth."""
