"""`make compose-check`: the shipped docker-compose.yml, brought up; docs/deploy.md says what this cannot prove."""
