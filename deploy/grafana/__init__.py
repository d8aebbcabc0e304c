"""The dashboards as code; ``python -m deploy.grafana.generate`` writes the JSON that Grafana reads."""
