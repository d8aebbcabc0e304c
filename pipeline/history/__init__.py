"""Looking back: list, difference, verify, retract. Imports everything but producers and consumers."""
