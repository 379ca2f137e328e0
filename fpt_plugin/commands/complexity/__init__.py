"""Count parameters, multiply-adds and activation memory of a model, part by part."""
