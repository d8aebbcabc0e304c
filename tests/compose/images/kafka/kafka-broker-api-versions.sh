#!/bin/sh
exec java $KAFKA_HEAP_OPTS -cp '/opt/kafka/libs/*' org.apache.kafka.tools.BrokerApiVersionsCommand "$@"
