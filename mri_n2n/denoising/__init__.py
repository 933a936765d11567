"""Noise2Void: a cleaner image from noisy images alone, by predicting pixels that the network was not shown."""
