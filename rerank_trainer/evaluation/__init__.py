"""Evaluation: how well scores rank."""
