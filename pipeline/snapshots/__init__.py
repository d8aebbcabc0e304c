"""Models on disk, and predicting with one. Imports learners."""
