"""What REAPI clients see: one service a file. Instance names are resolved here, and end here."""
