"""One run in four ways: the bare CLI, our service with cold and with warm starts, DataHub's own executor."""
