"""Contracts and memory mechanics. Imports nothing from the rooms above it."""
