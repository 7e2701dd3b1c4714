"""What keeps small updates of low-precision weights: one file a form of masters."""
