"""The three protections: loss scaling, gradient clipping, master weights."""
