"""The contract: stubs generated from proto/gradwire/v1 by scripts/generate."""
