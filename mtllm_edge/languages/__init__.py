"""Language codes, matching and identification."""
