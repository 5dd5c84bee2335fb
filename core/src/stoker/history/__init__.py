"""What became of actions: records that outlive the process, and what two actions differ in."""
