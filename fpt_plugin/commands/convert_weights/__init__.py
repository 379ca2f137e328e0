"""Convert weights of other projects for our backbones."""
