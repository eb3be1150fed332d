"""``bllpipe check``: what a config asks for, counted without starting anything."""
