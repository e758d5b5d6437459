"""What the executor costs, measured beside the bare CLI in the same run."""
