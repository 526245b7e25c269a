"""How good would the best label be if the unit had nothing to do with the images? Null percentiles by permutation."""

from saelab.label.nulls.percentile import null_percentile, null_percentiles

__all__ = ["null_percentile", "null_percentiles"]
