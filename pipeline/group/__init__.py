"""Many learners, one model: who owns a partition, what is published, how partitions change hands. Imports learners."""
