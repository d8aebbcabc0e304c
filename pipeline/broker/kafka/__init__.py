"""The broker on Apache Kafka, through kafka-python. Imports the protocol."""
