"""One run, grids of runs, the engines that run them, plans."""
