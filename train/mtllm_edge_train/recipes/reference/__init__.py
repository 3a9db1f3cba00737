"""Recipe of the reference model: its data, encoder and training stages."""
