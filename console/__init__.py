"""The command line's options and output; the commands themselves are in `stablebptt.cli`."""
