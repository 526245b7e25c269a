"""The report live: the same pages on loopback, with search, label editing and blind rating; and rating by sheets."""

from saelab.report.live import analysis, rating, sheets, store, uploads
from saelab.report.live.app import application
from saelab.report.live.search import Models, Search

__all__ = ["Models", "Search", "analysis", "application", "rating", "sheets", "store", "uploads"]
