"""Trainers: subclasses of the Transformers Trainer that wire groups, models, objectives and metrics together."""
