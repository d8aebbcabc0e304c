"""What reads the stream."""
