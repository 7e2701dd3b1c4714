"""Faster ways to compute what a layer computes, one kind of kernel a file."""
