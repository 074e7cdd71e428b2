"""Recipes: how to train, as data."""

from convwright.training.recipe.recipe import MemoryFormat, Option, Precision, Recipe, as_recipe

__all__ = ["MemoryFormat", "Option", "Precision", "Recipe", "as_recipe"]
