"""Mining: hard negatives of a first stage for queries with known positives, and filters against false negatives."""
