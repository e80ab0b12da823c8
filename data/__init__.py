"""Files: atomic writing, labelled arrays, run files, summaries, golden numbers."""
