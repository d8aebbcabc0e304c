"""The core of marketstream: records, data, scenarios, the learner, its sums, scores, metrics, brokers."""
