"""The command line: arguments, inputs in order, results into folders, progress."""
