"""Media and pairs on disk -> batches."""
