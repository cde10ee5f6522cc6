"""Corpora as they are distributed, read as triplets of pictures and rejects with a reason; the demo set is made here too."""
