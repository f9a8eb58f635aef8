"""Evaluation: how well a guard judges, in numbers that can be made again."""
