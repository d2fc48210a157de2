"""The decoders behind ``bytelm.decode``: one on torch, one through the compiled engine."""
