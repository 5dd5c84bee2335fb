"""The Remote Execution API and its neighbours, compiled from protos/; see protos/README.md."""
