"""Convert corpora, as they are distributed, to shards of triplets; also makes the demo set."""
