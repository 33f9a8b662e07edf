"""Media files -> pairs folder, shards and cached codes: the commands embed, shard and tokenize."""
