"""The comparison of several CAM methods: the metric, its statistics and its table."""
