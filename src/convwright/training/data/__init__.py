"""Data sets: images and labels from arrays, files, folders and by name; augmentation and batches."""

from convwright.training.data.data import MEMORY_LIMIT, ImageData, check_fits, load_data

__all__ = ["MEMORY_LIMIT", "ImageData", "check_fits", "load_data"]
