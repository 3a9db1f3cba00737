"""Checks of the installation and of a bundle: `doctor` and `verify --deep`."""
