"""How good an image is where nobody has a reference."""
