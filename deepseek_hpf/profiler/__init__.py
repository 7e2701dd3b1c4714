"""Where precision is lost and where time is wasted: conflicts, ranges, census, and the report."""
