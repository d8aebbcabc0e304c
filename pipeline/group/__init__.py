"""Many learners, one model: who owns which partition, what is published, how partitions change hands. Imports learners."""
