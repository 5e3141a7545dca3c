"""Objectives: what a trainer minimises, made of losses, weights and targets."""
