"""The engine: step, optimizer, sharding, checkpoints, logbook. Arrays, trees and functions come in; no model, no task."""
