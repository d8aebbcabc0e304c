"""Bytes on topics: images, predictions, the journal, dead letters. Imports the broker."""
