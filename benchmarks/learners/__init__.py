"""Baselines, behind the face of all learners, for comparison only: none of them keeps its state on disk.

After a restart a baseline begins anew.
"""
