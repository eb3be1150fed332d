"""What people at a terminal see: a run followed by its files, and the commands that describe machine and shell."""
