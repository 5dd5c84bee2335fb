"""Output that grows while it is read: of actions that run, and of clients that write logs."""
