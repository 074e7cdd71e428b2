"""Adapters to frameworks that build and train networks their own way; each is imported where its framework is used."""
