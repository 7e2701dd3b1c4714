"""Controllers: what reads telemetry and says which plan comes next. One file each."""
