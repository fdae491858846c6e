"""The commands, one to a file; what is heavier than NumPy is imported when they run, so that help is quick."""

EXIT_PROBLEM = 1
EXIT_INTERRUPTED = 130
