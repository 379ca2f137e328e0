"""Train a small detector or segmentor on real data from Python packages."""
