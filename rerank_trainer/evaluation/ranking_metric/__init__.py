"""The metric module of the ``evaluate`` library: ``evaluate.load`` opens this folder."""
