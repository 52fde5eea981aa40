"""For tests, ours and those of people who write clients: a fake backend and a clock that is set by hand."""
