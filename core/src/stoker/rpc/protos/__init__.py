"""gRPC health checking and server reflection, compiled from protos/; see protos/README.md."""
