"""Data: images from arrays, files and named sets, in batches."""

from convwright.training.data.data import MEMORY_LIMIT, ImageData, check_fits, load_data

__all__ = ["MEMORY_LIMIT", "ImageData", "check_fits", "load_data"]
