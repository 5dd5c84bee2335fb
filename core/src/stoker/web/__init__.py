"""What the server tells over plain HTTP: metrics, for those who watch it."""
