"""What people see: scores, metrics, the page that Prometheus scrapes. Imports records."""
