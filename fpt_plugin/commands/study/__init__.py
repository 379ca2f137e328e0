"""Studies: train variants of one config with several seeds, compare gain and cost."""
