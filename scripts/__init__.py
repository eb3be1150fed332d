"""Scripts for the development of bllpipe."""
