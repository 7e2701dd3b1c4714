"""The measuring loop around the choice of precision: candidates, trials, and what won."""
