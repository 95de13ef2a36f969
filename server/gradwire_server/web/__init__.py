"""The page that `gradwire serve` shows: HTTP for browsers, beside gRPC, to the same servicer."""
