"""The engine: step, optimizer, sharding, checkpoints, logbook. Arrays, trees, functions come in; no model, no task."""
