"""Speed and accuracy, measured; each prints a table and can print JSON."""
