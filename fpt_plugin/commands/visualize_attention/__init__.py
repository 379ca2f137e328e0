"""Draw where the branches of a trained FPT look in an image."""
