"""Describe-and-Dissect: captions of what fires a unit, their summary, and an order by pictures of the candidates."""
