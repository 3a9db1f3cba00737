"""Classification tasks: heads, predictions, fitting, calibration, and their storage in a bundle."""
