"""`make compose-check`: the shipped docker-compose.yml, brought up and watched."""
