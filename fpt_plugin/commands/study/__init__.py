"""Studies: rows of one config, several seeds, a table of gains and costs."""
