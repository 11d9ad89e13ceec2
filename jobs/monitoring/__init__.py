"""Files for Prometheus and Grafana, made from the list of metrics in `cluster.metric_table`."""
