"""Labels: mining, vocabularies, proposals, scorers, and the pipeline that joins them for one basis."""

from saelab.label import assign, mine

__all__ = ["assign", "mine"]
