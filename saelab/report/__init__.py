"""The report: a folder of static pages that opens from disk, without a server and without a network."""

from saelab.report.build import build

__all__ = ["build"]
