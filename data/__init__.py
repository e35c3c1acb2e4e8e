"""Pairs, priors and everything that reads or writes them."""
