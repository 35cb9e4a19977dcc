"""Grafana's dashboards as code: `make dashboards` writes docker/grafana/dashboards, which is what Grafana loads."""
