"""A Kafka broker and a Prometheus on this machine, for tests, benchmarks and people."""
