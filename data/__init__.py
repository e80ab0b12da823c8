"""What goes in and out: initial states, run files, plans of the published sweeps, golden numbers."""
