"""From corpora as they are distributed to shards and a manifest."""
