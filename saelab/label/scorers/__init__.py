"""Scorers: a file a family, a row a scorer. `saelab.label.assign` is where to call them from."""
