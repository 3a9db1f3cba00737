"""Headers of foreign file formats, read without trusting a single number in them."""
