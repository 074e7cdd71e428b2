"""Recipes: how to train, as data; optimizers and learning-rate schedules."""

from convwright.training.recipe.recipe import MemoryFormat, Option, Precision, Recipe, as_recipe

__all__ = ["MemoryFormat", "Option", "Precision", "Recipe", "as_recipe"]
