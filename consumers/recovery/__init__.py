"""What a learner knows, and how it comes to know it again after a stop or a crash."""
