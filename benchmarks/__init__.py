"""Ratios against peers; each file is a script."""
