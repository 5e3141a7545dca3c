"""Data: from rows in a file, on the Hub or in a TREC run to one batch of token rows."""
