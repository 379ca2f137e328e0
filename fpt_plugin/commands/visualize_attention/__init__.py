"""Draw which parts of an image the branches of a trained FPT attend to."""
