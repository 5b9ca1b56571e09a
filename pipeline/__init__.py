"""Offline half of Reelcache: video files to shards of uint8 frames. NumPy only, never torch."""
