"""Raw files in, shuffled byte windows out."""
