"""What a run consists of, written so that a killed run continues with the same bits."""
