"""Scoring at scale: a teacher's scores for any number of groups, written into shards."""
