"""The bundle format: manifest, validation, reading, writing, packaging."""
