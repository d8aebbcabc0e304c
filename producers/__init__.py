"""What puts images on the stream."""
