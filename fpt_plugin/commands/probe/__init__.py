"""The command ``probe``: linear classifiers on the features of each layer."""
