"""One file, one experiment. A file's docstring gives its command, the time it takes and the result to expect."""
