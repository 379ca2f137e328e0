"""Train a small detector or segmentor on real data that packages carry."""
