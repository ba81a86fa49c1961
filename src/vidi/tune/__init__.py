"""Searches and ablations: many trainings, one question."""
